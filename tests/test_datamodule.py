"""Reader, order, resumption and augmentation of HO3Pairs."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds

from hoi_lightning.data.augment import Augment, augment, crop_boxes, crop_points, warp
from hoi_lightning.data.datamodule import EpochSampler
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.data.sample import decode, encode
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import crop_layout, flip_layout, hole_mask, splat
from tests.tiny import sample, write_shards


def test_encode_decode_is_identity_but_for_jpeg() -> None:
    given = sample(3)
    record = encode(given)
    read = decode({name: data for name, data in record.items() if name != "__key__"})
    assert read.info == given.info
    for name in ("hand", "object"):
        np.testing.assert_array_equal(getattr(read, name), getattr(given, name))
    assert np.abs(read.hoi.astype(int) - given.hoi).mean() < 6
    assert encode(given) == record


def test_plain_webdataset_reads_the_same_samples(shards: Path) -> None:
    index = ShardIndex(shards, "val")
    stream = wds.WebDataset(sorted(str(p) for p in shards.glob("val-*.tar")), shardshuffle=False)
    for i, record in enumerate(stream):
        assert record["__key__"] == index.keys[i]
        expected = decode({k: v for k, v in record.items() if not k.startswith("__")})
        np.testing.assert_array_equal(index.sample(i, ("hoi",)).hoi, expected.hoi)
    assert i + 1 == len(index)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_is_every_sample_at_most_once_over_all_ranks(world_size: int) -> None:
    per_rank = 37 // world_size // 4 * 4
    seen = [a for r in range(world_size) for a in EpochSampler(37, per_rank, seed=1, rank=r, world_size=world_size)]
    assert len(seen) == len(set(seen)) == per_rank * world_size
    assert {epoch for epoch, _ in seen} == {0}


def test_any_position_continues_the_same_order() -> None:
    straight = EpochSampler(20, 16, seed=5)
    order = [address for _ in range(3) for address in straight]
    for position in (0, 1, 15, 16, 17, 40):
        resumed = EpochSampler(20, 16, seed=5, position=position)
        rest = [address for _ in range(3 - position // 16) for address in resumed]
        assert rest == order[position:]
    assert order[:16] != [(0, i) for _, i in order[16:32]]


def _batch(size: int = 48) -> dict[str, Any]:
    layout = torch.stack([sample(i).info.layout.to_tensor() for i in range(4)])
    return {
        "layout": layout,
        "hand": hole_mask(layout, size, 0),
        "obj": torch.zeros(4, 3, size, size),
        "epoch": torch.zeros(4, dtype=torch.long),
        "index": torch.arange(4),
    }


def test_augmenting_commutes_with_drawing() -> None:
    layout = _batch()["layout"]
    box = crop_boxes(0.5, torch.rand(4, 3, generator=torch.Generator().manual_seed(0)))
    flip = torch.tensor([True, False, True, False])
    moved = crop_layout(layout, box)
    moved = torch.where(flip[:, None], flip_layout(moved), moved)
    # a window of a finely drawn splat against the moved layout's own splat
    drawn = warp(splat(layout, 512), box, flip, nearest=False)
    assert (drawn - splat(moved, 512)).abs().mean() < 5e-3


def test_augmentation_belongs_to_seed_epoch_and_sample() -> None:
    settings = Augment(crop_area=0.5, noise=0.0)
    whole = augment(_batch(), settings, seed=7)
    reverse = {name: value.flip(0) for name, value in _batch().items()}
    torch.testing.assert_close(augment(reverse, settings, seed=7)["layout"], whole["layout"].flip(0))
    later = _batch() | {"epoch": torch.ones(4, dtype=torch.long)}
    assert not torch.equal(augment(later, settings, seed=7)["layout"], whole["layout"])


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("ZY.cls.pkl", "not part of"), ("../x.json", "not part of"), ("ZY.hoi.jpg", "1 samples, manifest.json says 0")],
)
def test_foreign_members_and_counts_are_refused(tmp_path: Path, name: str, complaint: str) -> None:
    root = write_shards(tmp_path / "s", {"train": 0})
    with tarfile.open(root / "train-000000.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    shard = {"name": "train-000000.tar", "split": "train", "count": 0}
    (root / "manifest.json").write_text(json.dumps({"shards": [shard]}))
    with pytest.raises(InputError, match=complaint):
        ShardIndex(root, "train")


def test_missing_shards_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make shards"):
        ShardIndex(tmp_path, "train")


@pytest.mark.parametrize("flip", [False, True])
def test_keypoints_move_with_the_layout_of_their_box(flip: bool) -> None:
    points = torch.rand(3, 21, 2) * 0.8 - 0.4
    low, high = points.amin(1), points.amax(1)
    a = (high - low).amax(1).sqrt()
    layout = torch.cat([a[:, None], (low + high) / 2, torch.tensor([[0.6, 0.8]]).expand(3, 2)], dim=1)
    box = torch.tensor([[-0.5, -0.6, 0.7, 0.6]]).expand(3, 4)
    moved, expected = crop_points(points, box, torch.tensor([flip] * 3)), crop_layout(layout, box)
    expected = flip_layout(expected) if flip else expected
    torch.testing.assert_close((moved.amin(1) + moved.amax(1)) / 2, expected[:, 1:3])
    torch.testing.assert_close((moved.amax(1) - moved.amin(1)).amax(1).sqrt(), expected[:, 0])
