"""Figures of sampled pictures while a network learns."""

import sys
import zlib
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.metrics.image import ImageMetrics, as_batch, hole_crop, image_metrics


@runtime_checkable
class SamplesImages(Protocol):
    """What this callback needs of a task; one that paints no pictures is left alone."""

    def sample_images(self, batch: dict[str, Any], seeds: list[int]) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] for the batch, comparable with `batch["hoi"]`."""
        ...

    def hole_mask(self, layouts: Tensor) -> Tensor:
        """What may differ from `batch["obj"]`, (B, 1, H, W) of {0, 1}."""
        ...


class ImageMetricsCallback(Callback):
    """Samples pictures for a fixed part of the validation set and logs `val/fid`, `val/lpips` or their stand-ins.

    In `test` it samples the whole test split and logs `test/fid` and so on.

    The same with `_hand` are of the squares around the recorded hands; `val/outside_max_diff`, the largest change of
    any pixel outside a hole, of 255, is 0 unless something is broken.

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
        self._hands: ImageMetrics | None = None
        self._outside = 0
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
            self._begin(pl_module, -(-self.num_samples // trainer.world_size))  # each rank its share, rounded up
        self._validations += 1

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the whole split."""
        if isinstance(pl_module, SamplesImages):
            self._begin(pl_module, sys.maxsize)

    def _begin(self, pl_module: LightningModule, num_samples: int) -> None:
        self._left, self._outside = num_samples, 0
        if self._metrics is None or self._hands is None:
            self._metrics, self._hands = image_metrics(pl_module.device), image_metrics(pl_module.device)
        self._metrics.reset()
        self._hands.reset()

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
        if self._left == 0 or self._metrics is None or self._hands is None:
            return
        wanted = {name: values[: self._left] for name, values in batch.items()}
        seeds = sample_seeds(self.seed, [zlib.crc32(key.encode()) for key in wanted["key"]])
        task: SamplesImages = pl_module  # type: ignore[assignment]
        with torch.no_grad():
            with trainer.precision_plugin.forward_context():  # a callback's hooks run outside of it
                fake = task.sample_images(wanted, seeds)
            holes = task.hole_mask(wanted["layout"]).bool()
        fake, real, obj = (_to_uint8(pictures) for pictures in (fake, wanted["hoi"], wanted["obj"]))
        self._metrics.update(fake, real)
        self._outside = max(self._outside, int(((fake.int() - obj.int()).abs() * ~holes).max()))
        hands = wanted["hand"][:, 0].bool().cpu().numpy()
        with_hand = [row for row, hand in enumerate(hands) if hand.any()]
        if with_hand:
            crops = (
                as_batch([hole_crop(pictures[row].permute(1, 2, 0).cpu().numpy(), hands[row]) for row in with_hand])
                for pictures in (fake, real)
            )
            self._hands.update(*crops)
        self._left -= len(seeds)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the ranks and log."""
        if not trainer.sanity_checking and not (self._validations - 1) % self.every_n_validations:
            self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the ranks and log."""
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        if self._metrics is None or self._hands is None:
            return
        streams = {"": self._metrics, "_hand": self._hands}
        if trainer.world_size > 1:
            states: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, [metrics.state() for metrics in streams.values()])
            for place, metrics in enumerate(streams.values()):
                metrics.reset()
                for state in states:
                    metrics.merge(state[place])
        figures = {f"{prefix}/outside_max_diff": float(self._outside)}
        for name, metrics in streams.items():
            if metrics.num_pictures >= 2:  # a covariance needs two: a smoke run with one picture is no error
                figures |= {f"{prefix}/{key}{name}": value for key, value in metrics.compute().items()}
        pl_module.log_dict(figures, sync_dist=True, reduce_fx="max")  # the difference differs by rank


def _to_uint8(pictures: Tensor) -> Tensor:
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)  # rounded: truncating darkens
