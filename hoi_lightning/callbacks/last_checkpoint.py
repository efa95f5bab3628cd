"""`last.ckpt`: there whenever `fit` ends, by whatever cause."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hoi_lightning.errors import NonFiniteLoss


class LastCheckpoint(Checkpoint):
    """Keep `<root>/checkpoints/last.ckpt` current: every n steps, at the end, and when the run is stopped or fails.

    The file is replaced in one step, so a kill at any moment leaves the old one or the new one.

    Args:
        every_n_steps: optimizer steps between two writes.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has its checkpoint already."""
        self._saved_step = trainer.global_step if trainer.ckpt_path else -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write every n steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write at the end."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write when stopped. Not after a loss that is not finite: the weights may be lost, the older file is not."""
        # with several processes the others may be gone, and saving waits for all of them
        alone = trainer.world_size == 1 or isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if trainer.state.fn == "fit" and alone and not isinstance(exception, NonFiniteLoss):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step in (0, self._saved_step) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir, "checkpoints")
        fresh = folder / "last.ckpt.new"
        trainer.save_checkpoint(fresh, weights_only=False)
        if trainer.is_global_zero:
            os.replace(fresh, folder / "last.ckpt")
        self._saved_step = trainer.global_step
