"""The DataModule that feeds both networks from HO3Pairs shards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from hoi_lightning.data.augment import Augment, augment
from hoi_lightning.data.index import cache_folder
from hoi_lightning.data.loader import BatchLoader, BatchReader, Steps, Tally
from hoi_lightning.data.manifest import Split
from hoi_lightning.data.order import EvaluationSteps, Order, RepeatedOrder, Shares, TrainingSteps, since_last_step
from hoi_lightning.data.reader import OnError, ShardIndex, Shards
from hoi_lightning.data.remote import open_shards
from hoi_lightning.data.sample import MEMBERS, OPTIONAL, Field
from hoi_lightning.errors import InputError

EVALUATION_FIELDS: tuple[Field, ...] = ("hoi", "obj", "hand", "object")


class HoiDataModule(LightningDataModule):
    """HO3Pairs for training and evaluation.

    Batches reach the task as float tensors on the device: pictures (B, 3, S, S) in [-1, 1], masks (B, 1, S, S) in
    {0, 1}, `layout` (B, 5), `key` and `category` as lists; beside `hand` the `keypoints` (B, 21, 2), NDC,
    NaN where unknown.

    An epoch of training is every sample once over all processes (or as often as `category_repeats` says), in an order
    that (seed, epoch) decides; a run goes on at the sample where it stopped, also with another number of processes,
    threads or samples per batch. Validation and test score every sample once; under FSDP up to one sample less per
    process, so that all have as many batches.

    Args:
        shards: folder that `make shards` wrote, or its URL (https, s3, gs, …): tars are then fetched while training.
        batch_size: samples per batch and process.
        num_workers: decoding threads of each process; 0 decodes in the training thread.
        image_size: side of the pictures that the task sees, in pixels; None = as stored.
        fields: pictures to decode for training. MaskNet needs `obj`, FusionNet `hoi`, `obj` and `hand`.
        latents: train on the latents cached in the shards, with the `fields` beside them; nothing is cropped, flipped.
        crop_area: see `Augment`.
        flip: see `Augment`.
        sdedit: see `Augment`.
        blur: see `Augment`.
        noise: see `Augment`.
        colour: see `Augment`.
        jitter: see `Augment`.
        jitter_degrees: see `Augment`.
        category_repeats: how often a category's samples come in an epoch of training, once where it is not named: for
            what is rare or hard. Of shards on this machine alone.
        seed: decides the order of samples and their augmentation; None = that of `--seed_everything`, in Python 0.
        on_error: what a damaged sample does: stop the run, or be left out, counted and logged.
        max_bad_fraction: of damaged samples; more stop the run.
        cache_dir: where fetched tars are kept; None = in the user's cache folder.
        cache_gb: room for them.
    """

    def __init__(
        self,
        shards: str | Path = "data/ho3pairs",
        batch_size: int = 32,
        num_workers: int = 4,
        image_size: int | None = None,
        fields: tuple[Field, ...] = ("hoi", "obj", "sdedit", "hand"),
        latents: bool = False,
        crop_area: float = 0.8,
        flip: float = 0.0,
        sdedit: float = 0.5,
        blur: float = 0.0,
        noise: float = 0.5,
        colour: float = 0.0,
        jitter: float = 0.0,
        jitter_degrees: float = 0.0,
        category_repeats: dict[str, int] | None = None,
        seed: int | None = None,
        on_error: OnError = "raise",
        max_bad_fraction: float = 0.01,
        cache_dir: Path | None = None,
        cache_gb: float = 100.0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"--data.batch_size {batch_size}: give at least 1")
        if num_workers < 0:
            raise InputError(
                f"--data.num_workers {num_workers}: give 0, which decodes in the training process, or more"
            )
        for name, repeats in (category_repeats or {}).items():
            if repeats < 1:
                raise InputError(f"--data.category_repeats.{name} {repeats}: give at least 1")
        self.category_repeats = category_repeats or {}
        self.shards, self.batch_size, self.num_workers, self.image_size = shards, batch_size, num_workers, image_size
        self.fields, self.latents, self.seed = fields, latents, seed or 0
        self.on_error, self.max_bad_fraction = on_error, max_bad_fraction
        self.cache_dir, self.cache_gb = cache_dir or cache_folder() / "shards", cache_gb
        self.augment = Augment(crop_area, flip, sdedit, blur, noise, colour, jitter, jitter_degrees)
        self._indices: dict[str, Shards] = {}
        self._tallies: list[Tally] = []
        self._start = (0, 0)  # epoch and position of the first batch of this start of the run
        self._restored = False
        self._steps: TrainingSteps | None = None
        self._batches_before = self._epoch_batches_before = 0

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned process gets: it opens the shards itself."""
        return self.__dict__ | {"_indices": {}, "_tallies": [], "_steps": None}

    @property
    def skipped(self) -> list[str]:
        """What was left out so far: shard, key and reason."""
        return [text for tally in self._tallies for text in tally.skipped]

    def index(self, split: Split) -> Shards:
        """The opened shards of one split."""
        if split not in self._indices:
            shards = open_shards(self.shards, split, self.on_error, self.cache_dir, self.cache_gb)
            lost = sum(fault.samples for fault in shards.faults)
            self._tally(len(shards) + lost).add(0, shards.faults)
            self._indices[split] = shards
        return self._indices[split]

    def setup(self, stage: str) -> None:
        """Open what the stage needs, so that missing shards stop the run before anything slow."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in splits.get(stage, ("test",)):
            fields = self.fields if split == "train" else EVALUATION_FIELDS
            self.index(split).require([MEMBERS[name] for name in fields if name not in OPTIONAL])

    def layout_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (5,) of the training layouts."""
        layouts = torch.from_numpy(self.index("train").layouts())
        return layouts.mean(0), layouts.std(0)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled; goes on at the sample a checkpoint was written after."""
        shards = self.index("train")
        samples = self._repeated(shards) if self.category_repeats else None
        shares = self._shares(shards, "training", samples)

        def order(epoch: int) -> Order:
            if samples is None:
                return shards.order(self.seed, epoch)
            return RepeatedOrder(samples, self.seed, epoch)

        self._steps = TrainingSteps(shares, order, *self._start)
        if self.trainer is not None:
            self._align_progress(shares, self.trainer.fit_loop.epoch_loop.batch_progress)
        return self._loader(shards, self.fields, self._steps, shares, self.latents)

    def val_dataloader(self) -> BatchLoader:
        """The validation split in order."""
        return self._evaluation("val")

    def test_dataloader(self) -> BatchLoader:
        """The test split in order."""
        return self._evaluation("test")

    predict_dataloader = test_dataloader

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn uint8 into float, resize and, while training, augment; all on the device."""
        batch = {name: _to_float(name, value, self.image_size) for name, value in batch.items()}
        if self.trainer is not None and self.trainer.training:
            settings = replace(self.augment, crop_area=1.0, flip=0.0) if self.latents else self.augment
            batch = augment(batch, settings, self.seed)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position in the training stream, over all processes: epoch, and samples of it that were trained on."""
        if self._steps is None or self.trainer is None:
            return dict(zip(("epoch", "position"), self._start, strict=True))
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        per_epoch = int(self.trainer.num_training_batches)
        epoch, position = self._start
        undone = since_last_step(progress.current.processed, per_epoch, self.trainer.accumulate_grad_batches)
        batches = progress.total.processed - self._batches_before - undone
        first = per_epoch - self._epoch_batches_before
        if batches >= first:
            epochs, batches = divmod(batches - first, per_epoch)
            epoch, position = epoch + 1 + epochs, 0
        return {"epoch": epoch, "position": self._steps.shares.edge(batches, position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._start = state_dict["epoch"], state_dict["position"]
        self._restored = True

    def _align_progress(self, shares: Shares, progress: Any) -> None:
        """Tell Lightning how many batches of this run's size the restored epoch has behind it."""
        position = self._start[1]
        if self._restored:
            whole = shares.num_steps()
            done = whole - shares.num_steps(position) if position else whole * (progress.current.processed > 0)
            shift = done - progress.current.processed
            for name in ("ready", "started", "processed", "completed"):
                setattr(progress.current, name, getattr(progress.current, name) + shift)
        self._batches_before = progress.total.processed
        self._epoch_batches_before = progress.current.processed if position else 0

    def _evaluation(self, split: Split) -> BatchLoader:
        shards = self.index(split)
        shares = self._shares(shards, "validation" if split == "val" else split)
        # every forward pass of shared-out weights is one of all processes: a lone batch would wait for ever
        equal = self.trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy)
        return self._loader(shards, EVALUATION_FIELDS, EvaluationSteps(shares, equal), shares)

    def _repeated(self, shards: Shards) -> np.ndarray:
        """Training samples, each as often as its category says."""
        if not isinstance(shards, ShardIndex):
            raise InputError(f"--data.category_repeats: not for shards behind a URL ({self.shards}); leave it out")
        categories = [shards.find(i)[2] for i in range(len(shards))]
        if unknown := sorted(set(self.category_repeats) - set(categories)):
            known = ", ".join(sorted(set(categories)))
            raise InputError(f"--data.category_repeats.{unknown[0]}: no training sample is of it; there are {known}")
        return np.repeat(np.arange(len(shards)), [self.category_repeats.get(name, 1) for name in categories])

    def _shares(self, shards: Shards, name: str, samples: np.ndarray | None = None) -> Shares:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(shards) < world_size:
            raise InputError(
                f"{self.shards}: {len(shards)} {name} samples for {world_size} processes; use fewer devices"
            )
        return Shares(len(shards if samples is None else samples), self.batch_size, rank, world_size)

    def _loader(
        self, shards: Shards, fields: Sequence[Field], steps: Steps, shares: Shares, latents: bool = False
    ) -> BatchLoader:
        tally = self._tally(-(-shares.num_samples // shares.world_size))
        pin_memory = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        reader = BatchReader(shards, fields, tally, latents, pin_memory)
        return BatchLoader(reader, steps, self.num_workers, refill=isinstance(steps, TrainingSteps))

    def _tally(self, num_samples: int) -> Tally:
        tally = Tally(str(self.shards), self.on_error, self.max_bad_fraction, num_samples)
        self._tallies.append(tally)
        return tally


def _to_float(name: str, value: Any, image_size: int | None) -> Any:
    if name.endswith("_latents"):
        return value.float()
    if name not in get_args(Field):
        return value
    is_mask = name in ("hand", "object")
    pictures = value.to(torch.float32, memory_format=torch.contiguous_format)
    pictures = pictures if is_mask else pictures / 127.5 - 1
    if image_size is None or pictures.shape[-1] == image_size:
        return pictures
    if is_mask:
        return F.interpolate(pictures, size=(image_size, image_size), mode="nearest-exact")
    return F.interpolate(pictures, size=(image_size, image_size), mode="bilinear", antialias=True).clamp(-1, 1)
