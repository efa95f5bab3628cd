"""The DataModule that feeds both networks from HO3Pairs shards."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from hoi_lightning.data.augment import Augment, augment
from hoi_lightning.data.reader import ShardIndex, Split
from hoi_lightning.data.sample import Field, SampleInfo
from hoi_lightning.errors import InputError

EVALUATION_FIELDS: tuple[Field, ...] = ("hoi", "obj", "hand", "object")


class HO3Pairs(Dataset[dict[str, Any]]):
    """One split as uint8 tensors, addressed by (epoch, index).

    Args:
        index: the shards.
        fields: pictures to decode.
        latents: read the cached latents too.
    """

    def __init__(self, index: ShardIndex, fields: tuple[Field, ...], latents: bool = False) -> None:
        self.index, self.fields, self.latents = index, fields, latents
        if latents:
            index.open_latents()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Any]:
        epoch, i = address
        sample = self.index.sample(i, self.fields)
        item = {
            "key": sample.info.key,
            "category": sample.info.category,
            "layout": sample.info.layout.to_tensor(),
            "epoch": epoch,
            "index": i,
        }
        for name in self.fields:
            pixels = getattr(sample, name)
            if pixels is not None:
                item[name] = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
        if sample.hand is not None:
            item["keypoints"] = _keypoints(sample.info, len(sample.hand))
        if self.latents:
            item |= {f"{name}_latents": latents for name, latents in self.index.latents(i).items()}
        return item


class EpochSampler(Sampler[tuple[int, int]]):
    """Addresses (epoch, index) in an order that (seed, epoch) alone decides, from any position on.

    Ranks take every world_size-th address of one common permutation, so no sample comes twice in an epoch. The
    permutation's tail that does not fill a batch on every rank is left out; it is another tail each epoch.

    Args:
        num_samples: of the split.
        per_rank: addresses of one rank in one epoch.
        seed: of the permutations.
        rank: of this process.
        world_size: number of processes.
        position: addresses of this rank already used up, over all epochs.
    """

    def __init__(
        self, num_samples: int, per_rank: int, seed: int, rank: int = 0, world_size: int = 1, position: int = 0
    ) -> None:
        self.num_samples, self.per_rank, self.seed = num_samples, per_rank, seed
        self.rank, self.world_size, self.position = rank, world_size, position

    def __len__(self) -> int:
        return self.per_rank

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = divmod(self.position, self.per_rank)
        self.position = (epoch + 1) * self.per_rank
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.num_samples)
        mine = order[self.rank :: self.world_size][: self.per_rank]
        yield from ((epoch, int(i)) for i in mine[start:])


class HoiDataModule(LightningDataModule):
    """HO3Pairs for training and evaluation.

    Batches reach the task as float tensors on the device: pictures (B, 3, S, S) in [-1, 1], masks (B, 1, S, S) in
    {0, 1}, `layout` (B, 5), `key` and `category` as lists; beside `hand` the `keypoints` (B, 21, 2), NDC,
    NaN where unknown.

    Args:
        shards: folder that `make shards` wrote.
        batch_size: samples per batch and process.
        num_workers: decoding processes; 0 decodes in the training process.
        image_size: side of the pictures that the task sees, in pixels; None = as stored.
        fields: pictures to decode for training. MaskNet needs `obj`, FusionNet `hoi`, `obj` and `hand`.
        latents: train on the latents cached in the shards, with the `fields` beside them; nothing is augmented then.
        crop_area: see `Augment`.
        flip: see `Augment`.
        sdedit: see `Augment`.
        noise: see `Augment`.
        seed: decides the order of samples and their augmentation.
    """

    def __init__(
        self,
        shards: Path = Path("data/ho3pairs"),
        batch_size: int = 32,
        num_workers: int = 4,
        image_size: int | None = None,
        fields: tuple[Field, ...] = ("hoi", "obj", "sdedit", "hand"),
        latents: bool = False,
        crop_area: float = 0.8,
        flip: float = 0.0,
        sdedit: float = 0.5,
        noise: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shards, self.batch_size, self.num_workers, self.image_size = shards, batch_size, num_workers, image_size
        self.fields, self.latents, self.seed = fields, latents, seed
        self.augment = Augment(crop_area, flip, sdedit, noise)
        self._indices: dict[str, ShardIndex] = {}
        self._batches_done = 0

    def index(self, split: Split) -> ShardIndex:
        """The opened shards of one split."""
        if split not in self._indices:
            self._indices[split] = ShardIndex(self.shards, split)
        return self._indices[split]

    def setup(self, stage: str) -> None:
        """Open what the stage needs, so that missing shards stop the run before anything slow."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in splits.get(stage, ("test",)):
            self.index(split)

    def layout_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (5,) of the training layouts."""
        layouts = torch.from_numpy(self.index("train").layouts())
        return layouts.mean(0), layouts.std(0)

    def train_dataloader(self) -> DataLoader:
        """Shuffled, without the last short batch; goes on at the batch a checkpoint was written after."""
        assert self.trainer is not None
        data = HO3Pairs(self.index("train"), self.fields, self.latents)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        share = len(data) // world_size
        size = min(self.batch_size, share)
        if size == 0:
            raise InputError(
                f"{self.shards}: {len(data)} training samples for {world_size} processes; use fewer devices"
            )
        position = self._batches_done * size
        sampler = EpochSampler(len(data), share // size * size, self.seed, rank, world_size, position)
        return self._loader(data, size, sampler)

    def val_dataloader(self) -> DataLoader:
        """The validation split in order."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._evaluation("test")

    predict_dataloader = test_dataloader

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn uint8 into float, resize and, while training, augment; all on the device."""
        batch = {name: _to_float(name, value, self.image_size) for name, value in batch.items()}
        if self.trainer is not None and self.trainer.training and not self.latents:
            batch = augment(batch, self.augment, self.seed)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position in the training stream: batches that this run has trained on."""
        assert self.trainer is not None
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return {"batches_done": batches.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._batches_done = state_dict["batches_done"]

    def _evaluation(self, split: Split) -> DataLoader:
        data = HO3Pairs(self.index(split), EVALUATION_FIELDS)
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, len(data), self.trainer.world_size)
        return self._loader(data, self.batch_size, [(0, i) for i in mine])

    def _loader(self, data: HO3Pairs, batch_size: int, addresses: Iterable[tuple[int, int]]) -> DataLoader:
        return DataLoader(
            data,
            batch_size=batch_size,
            sampler=addresses,
            num_workers=self.num_workers,
            collate_fn=default_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


def _keypoints(info: SampleInfo, side: int) -> Tensor:
    if info.keypoints is None:
        return torch.full((21, 2), torch.nan)
    return torch.tensor(info.keypoints) * 2 / side - 1


def _to_float(name: str, value: Any, image_size: int | None) -> Any:
    if name.endswith("_latents"):
        return value.float()
    if name not in get_args(Field):
        return value
    is_mask = name in ("hand", "object")
    pictures = value.float() if is_mask else value.float() / 127.5 - 1
    if image_size is None or pictures.shape[-1] == image_size:
        return pictures
    if is_mask:
        return F.interpolate(pictures, size=(image_size, image_size), mode="nearest-exact")
    return F.interpolate(pictures, size=(image_size, image_size), mode="bilinear", antialias=True).clamp(-1, 1)
