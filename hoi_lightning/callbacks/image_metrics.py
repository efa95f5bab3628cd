"""Figures of sampled pictures while a network learns."""

import zlib
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.metrics.image import ImageMetrics, image_metrics


@runtime_checkable
class SamplesImages(Protocol):
    """What this callback needs of a task; one that paints no pictures is left alone."""

    def sample_images(self, batch: dict[str, Any], seeds: list[int]) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] for the batch, comparable with `batch["hoi"]`."""
        ...


class ImageMetricsCallback(Callback):
    """Samples pictures for a fixed part of the validation set and logs `val/fid`, `val/lpips` or their stand-ins.

    A sample's noise comes from (seed, key), so the figures of two validations differ by the weights alone. The feature
    networks are made at the first use, belong to no module and are in no checkpoint.

    Args:
        num_samples: pictures of the validation set, the first ones over all ranks; a Fréchet distance falls with it.
        every_n_validations: 1 = at each validation.
        seed: of the samples' noise.
    """

    def __init__(self, num_samples: int = 64, every_n_validations: int = 1, seed: int = 0) -> None:
        self.num_samples, self.every_n_validations, self.seed = num_samples, every_n_validations, seed
        self._metrics: ImageMetrics | None = None
        self._validations = 0
        self._left = 0

    def state_dict(self) -> dict[str, Any]:
        """The count of validations, so that a resumed run measures at the same ones."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._validations = state_dict["validations"]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this validation is measured."""
        self._left = 0
        if trainer.sanity_checking or not isinstance(pl_module, SamplesImages):
            return
        if self._validations % self.every_n_validations == 0:
            self._left = -(-self.num_samples // trainer.world_size)  # each rank its share, rounded up
            if self._metrics is None:
                self._metrics = image_metrics(pl_module.device)
            self._metrics.reset()
        self._validations += 1

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample the batch, or the part of it that is still wanted."""
        if self._left == 0 or self._metrics is None:
            return
        wanted = {name: values[: self._left] for name, values in batch.items()}
        seeds = sample_seeds(self.seed, [zlib.crc32(key.encode()) for key in wanted["key"]])
        task: SamplesImages = pl_module  # type: ignore[assignment]
        with torch.no_grad():
            fake = task.sample_images(wanted, seeds)
        self._metrics.update(_to_uint8(fake), _to_uint8(wanted["hoi"]))
        self._left -= len(seeds)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the ranks and log."""
        if trainer.sanity_checking or self._metrics is None or (self._validations - 1) % self.every_n_validations:
            return
        if trainer.world_size > 1:
            states: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, self._metrics.state())
            self._metrics.reset()
            for state in states:
                self._metrics.merge(state)
        if self._metrics.num_pictures < 2:  # a covariance needs two: a smoke run with one picture is no error
            return
        figures = {f"val/{name}": value for name, value in self._metrics.compute().items()}
        pl_module.log_dict(figures, sync_dist=True)  # equal on all ranks by now; sync_dist only says so


def _to_uint8(pictures: Tensor) -> Tensor:
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)  # rounded: truncating darkens
