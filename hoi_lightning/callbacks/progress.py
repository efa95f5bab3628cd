"""One progress bar for the whole run, in optimizer steps."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """Show steps done of `max_steps`, their rate and the loss; log `train/images_per_second`.

    Lightning's own bars count batches of an epoch, which says little when `max_steps` ends the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True
        self._images, self._since = 0, 0.0

    def disable(self) -> None:
        """Called on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run goes on."""
        self._bar = tqdm(
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            desc=type(pl_module).__name__,
            unit="step",
            disable=not self._enabled,
            dynamic_ncols=True,
            mininterval=1.0,
        )
        self._images, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar and measure."""
        assert self._bar is not None
        self._images += len(batch["key"]) * trainer.world_size
        steps = trainer.global_step - self._bar.n
        if not steps:  # still accumulating gradients
            return
        self._bar.set_postfix(loss=f"{float(outputs['loss']):.3f}", refresh=False)
        self._bar.update(steps)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            now = time.monotonic()
            pl_module.log("train/images_per_second", self._images / (now - self._since))
            self._images, self._since = 0, now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is no training time."""
        self._images, self._since = 0, time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message has a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
