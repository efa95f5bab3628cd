"""Sample panels in `fit`, of the same validation pictures with the same seeds at every step, and in `test`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from hoi_lightning.grid import draw_grid


class DrawsPanels(Protocol):
    """What the callback asks of a task."""

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        """Column name → pictures, uint8 (S, S, 3)."""


@runtime_checkable
class DrawsFigures(Protocol):
    """What some tasks have beside panels."""

    def figures(self, batch: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        """Figure name → uint8 (H, W, 3)."""


class SampleGrid(Callback):
    """Draw a grid of samples after validation, to `<run>/samples/` and to W&B or TensorBoard.

    In `test` the names begin with `test-`.

    Args:
        rows: pictures, the first ones of the split.
        cell: side of a drawn cell in pixels.
        seed: of the samples.
    """

    def __init__(self, rows: int = 8, cell: int = 128, seed: int = 0) -> None:
        self.rows, self.cell, self.seed = rows, cell, seed
        self._batch: dict[str, Any] | None = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first rows."""
        if batch_idx == 0:
            self._batch = {name: value[: self.rows] for name, value in batch.items()}

    on_test_batch_start = on_validation_batch_start

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample and draw."""
        self._draw(trainer, pl_module, "")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample and draw."""
        self._draw(trainer, pl_module, "test-")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        sharded = pl_module.device_mesh is not None  # then a forward pass is the work of all ranks
        if not (trainer.is_global_zero or sharded) or trainer.sanity_checking or self._batch is None:
            return
        task: Any = pl_module
        drawing: DrawsPanels = task
        with trainer.precision_plugin.forward_context():  # a callback's hooks run outside of it
            pictures = {"step": np.asarray(draw_grid(drawing.panels(self._batch, self.seed), self.cell))}
            if isinstance(task, DrawsFigures):
                pictures |= task.figures(self._batch, self.seed)
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir, "samples")
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            Image.fromarray(picture).save(folder / f"{prefix}{name}-{trainer.global_step:07d}.png")
            log_picture(trainer.loggers, f"samples/{prefix}{name}", picture, trainer.global_step)


def log_picture(loggers: Sequence[Any], name: str, picture: np.ndarray, step: int) -> None:
    """Send a uint8 (H, W, 3) picture to the loggers that show pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step, dataformats="HWC")
