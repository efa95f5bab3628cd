"""The DataModule: its batches, their order over a run, and where a run goes on."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from hoi_lightning.data.datamodule import HoiDataModule
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.data.sample import decode, encode
from hoi_lightning.errors import InputError
from tests.tiny import sample, write_shards
from tests.whole_folder import write_folder

COUNT = 37


pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader. but have no"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint"),  # the DataModule keeps the position
]


class Reads(LightningModule):
    """Learns nothing and remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[list[str]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.batches.append(batch["key"])
        return self.weight * batch["obj"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(shards: Path, root: Path, checkpoint: Path | None = None, **options: Any) -> list[list[str]]:
    """Keys of each batch of a run that writes a checkpoint every two steps."""
    limit = options.pop("limit_train_batches", None)
    epochs = options.pop("max_epochs", 3)
    task = Reads()
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=root, logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        limit_val_batches=0, limit_train_batches=limit,
        callbacks=[ModelCheckpoint(root, "{step}", every_n_train_steps=2, save_top_k=-1)],
    )  # fmt: skip
    data = HoiDataModule(shards, fields=("obj",), image_size=16, **options)
    trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
    return task.batches


def test_encode_decode_is_identity_but_for_jpeg() -> None:
    given = sample(3)
    record = encode(given)
    read = decode({name: data for name, data in record.items() if name != "__key__"})
    assert read.info == given.info
    for name in ("hand", "object"):
        np.testing.assert_array_equal(getattr(read, name), getattr(given, name))
    assert np.abs(read.hoi.astype(int) - given.hoi).mean() < 6
    assert encode(given) == record


def test_missing_shards_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make shards"):
        HoiDataModule(tmp_path).setup("fit")


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_batch_is_its_samples(shards: Path, num_workers: int) -> None:
    fields = ("hoi", "obj", "hand", "object")
    data = HoiDataModule(shards, batch_size=5, num_workers=num_workers, fields=fields)
    index = ShardIndex(shards, "train")
    seen = []
    for batch in data.train_dataloader():
        count = len(batch["key"])
        assert batch["hoi"].shape == (count, 3, 64, 64)
        assert batch["hand"].shape == (count, 1, 64, 64)
        for row, i in enumerate(batch["index"].tolist()):
            expected = index.sample(i, fields)
            assert batch["key"][row] == expected.info.key
            assert batch["category"][row] == expected.info.category
            assert torch.equal(batch["layout"][row], expected.info.layout.to_tensor())
            for name in fields:
                pixels = torch.from_numpy(getattr(expected, name).reshape(64, 64, -1)).permute(2, 0, 1)
                assert torch.equal(batch[name][row], pixels)
        assert batch["keypoints"].isnan().all()
        seen += batch["index"].tolist()
    assert sorted(seen) == list(range(COUNT))


def test_tasks_see_floats_in_place_of_bytes(shards: Path) -> None:
    data = HoiDataModule(shards, batch_size=4, num_workers=0, image_size=32)
    raw = next(iter(data.val_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch["obj"].shape == (4, 3, 32, 32)
    assert batch["obj"].is_contiguous()
    assert batch["obj"].dtype == torch.float32
    assert batch["obj"].min() >= -1
    assert batch["obj"].max() <= 1
    assert set(batch["hand"].unique().tolist()) <= {0.0, 1.0}
    shape = HoiDataModule(shards).on_after_batch_transfer(raw, 0)["obj"].shape
    assert shape == (4, 3, 64, 64)


def test_keypoints_are_ndc_beside_the_hand(tmp_path: Path) -> None:
    data = HoiDataModule(write_folder(tmp_path / "s"), batch_size=10, num_workers=0)
    batch = next(iter(data.train_dataloader()))
    index = data.index("train")
    points = [index.info(i).keypoints for i in batch["index"].tolist()]
    assert {known is None for known in points} == {True, False}
    for found, known in zip(batch["keypoints"], points, strict=True):
        if known is None:
            assert found.isnan().all()
        else:
            torch.testing.assert_close((found + 1) * 48 / 2, torch.tensor(known))


@pytest.mark.parametrize(("sdedit", "names"), [(False, set()), (True, {"sdedit"})])
def test_an_sdedit_copy_is_there_where_the_shards_have_one(tmp_path: Path, sdedit: bool, names: set[str]) -> None:
    folder = write_folder(tmp_path / "s", sdedit=sdedit)
    for fields in (("obj", "sdedit"), ("sdedit",)):
        batch = next(iter(HoiDataModule(folder, batch_size=4, num_workers=0, fields=fields).train_dataloader()))
        assert set(batch) & {"sdedit"} == names


def test_batches_stay_as_they_are_while_others_are_decoded(shards: Path) -> None:
    """Memory is used again, but never under somebody's hands."""
    data = HoiDataModule(shards, batch_size=4, num_workers=2, fields=("obj",))
    kept = [(batch, batch["obj"].clone()) for batch in data.train_dataloader()]
    for batch, copy in kept:
        assert torch.equal(batch["obj"], copy)


def test_memory_is_used_again(shards: Path) -> None:
    loader = HoiDataModule(shards, batch_size=4, num_workers=2, fields=("obj",)).train_dataloader()
    places = {batch["obj"].data_ptr() for _ in range(3) for batch in loader}
    assert len(places) <= 5  # what is being decoded, what is used and what comes next


def test_a_loader_that_is_left_leaves_no_thread_at_work(shards: Path) -> None:
    loader = HoiDataModule(shards, batch_size=4, num_workers=2, fields=("obj",)).train_dataloader()
    for _ in range(3):
        next(iter(loader))
    assert sum(thread.name.startswith("decode") for thread in threading.enumerate()) <= 2 + 2 * 12
    assert len([key for batch in loader for key in batch["key"]]) == COUNT


def test_an_error_reaches_the_training_thread(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", {"train": 9})
    data = HoiDataModule(folder, batch_size=4, num_workers=2, fields=("obj",))
    loader = data.train_dataloader()
    (folder / "train-000000.tar").write_bytes(b"")
    with pytest.raises(InputError, match="the tar is shorter than it was"):
        list(loader)


@pytest.mark.parametrize("stop", [4, 8, 10, 20, 24])
def test_a_run_goes_on_with_the_sample_where_it_stopped(shards: Path, tmp_path: Path, stop: int) -> None:
    """37 samples are 10 batches of 4: stops inside the first and the third epoch, and at the end of two."""
    straight = fit(shards, tmp_path / "a", batch_size=4, num_workers=0)
    for first in (0, 10, 20):
        assert (
            sorted(key for batch in straight[first : first + 10] for key in batch) == ShardIndex(shards, "train").keys
        )
    assert straight[:10] != straight[10:20]
    rest = fit(shards, tmp_path / "b", tmp_path / f"a/step={stop}.ckpt", batch_size=4, num_workers=3)
    count = len(straight) - stop
    assert rest[:count] == straight[stop:]


def test_a_category_comes_as_often_as_it_is_told(tmp_path: Path) -> None:
    """Every epoch is of 4 x 3 knives, 4 mugs and 4 bowls, mixed; stopped, it goes on where it was."""
    shards = write_shards(tmp_path / "s", {"train": 12, "val": 1}, categories=("Knife", "Mug", "Bowl"))
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "category_repeats": {"Knife": 3}}
    straight = fit(shards, tmp_path / "a", **options)
    epochs = [[key for batch in straight[start : start + 5] for key in batch] for start in (0, 5, 10)]
    keys = ShardIndex(shards, "train").keys
    for epoch in epochs:
        assert sorted(epoch) == sorted([*keys, *2 * keys[::3]])
    assert epochs[0] != epochs[1]
    rest = fit(shards, tmp_path / "b", tmp_path / "a/step=6.ckpt", **options)
    assert rest[: len(straight) - 6] == straight[6:]


@pytest.mark.parametrize(
    ("repeats", "remedy"), [({"Knife": 0}, "Knife 0: give at least 1"), ({"Knive": 2}, "Knive: no .* there are Mug")]
)
def test_repeats_of_no_category_are_one_line(shards: Path, repeats: dict[str, int], remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        HoiDataModule(shards, category_repeats=repeats).train_dataloader()


@pytest.mark.parametrize(("stop", "batch_size"), [(4, 3), (4, 9), (10, 7), (14, 2)])
def test_a_run_goes_on_with_batches_of_another_size(shards: Path, tmp_path: Path, stop: int, batch_size: int) -> None:
    straight = fit(shards, tmp_path / "a", batch_size=4, num_workers=0)
    rest = fit(shards, tmp_path / "b", tmp_path / f"a/step={stop}.ckpt", batch_size=batch_size, num_workers=0)
    expected = [key for batch in straight[stop:] for key in batch]
    assert [key for batch in rest for key in batch][: len(expected)] == expected
    assert max(len(batch) for batch in rest) == batch_size


def test_a_limited_epoch_goes_on_as_it_would_have(shards: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "limit_train_batches": 3, "max_epochs": 4}
    straight = fit(shards, tmp_path / "a", **options)
    assert len(straight) == 12
    for stop in (2, 4, 8):
        rest = fit(shards, tmp_path / f"b{stop}", tmp_path / f"a/step={stop}.ckpt", **options)
        assert rest == straight[stop:]


def test_seed_decides_the_order(shards: Path) -> None:
    orders = [
        [
            key
            for batch in HoiDataModule(shards, num_workers=0, fields=(), seed=seed).train_dataloader()
            for key in batch["key"]
        ]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_validation_scores_every_sample_once(shards: Path) -> None:
    data = HoiDataModule(shards, batch_size=3, num_workers=2)
    keys = [key for batch in data.val_dataloader() for key in batch["key"]]
    assert keys == ShardIndex(shards, "val").keys


@pytest.mark.parametrize("sdedit", [False, True])
def test_latents_come_with_a_live_layout(tmp_path: Path, sdedit: bool) -> None:
    folder, shape = write_folder(tmp_path / "s", sdedit=sdedit), (4, 6, 6)
    write_latents(folder, shape)
    data = HoiDataModule(folder, batch_size=10, num_workers=2, fields=(), latents=True)
    batch = next(iter(data.train_dataloader()))
    names = {"hoi_latents", "obj_latents"} | ({"sdedit_latents"} if sdedit else set())
    assert {name for name in batch if "latents" in name} == names
    for row, i in enumerate(batch["index"].tolist()):
        expected = data.index("train").latents(i)
        for name in names:
            assert torch.equal(batch[name][row], expected[name.removesuffix("_latents")])
        assert torch.equal(batch["layout"][row], data.index("train").info(i).layout.to_tensor())
    seen = data.on_after_batch_transfer(batch, 0)
    assert seen["hoi_latents"].dtype == torch.float32
    assert torch.equal(seen["layout"], batch["layout"])


def test_a_damaged_latent_names_its_sample_or_is_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s")
    write_latents(folder, (4, 6, 6), bad_row=3)
    options: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "fields": (), "latents": True}
    with pytest.raises(InputError, match=r"train-000000\.tar, sample .*_f00003: latents\.safetensors"):
        list(HoiDataModule(folder, **options).train_dataloader())
    data = HoiDataModule(folder, on_error="skip", max_bad_fraction=0.1, **options)
    assert sum(len(batch["key"]) for batch in data.train_dataloader()) == 9


def write_latents(folder: Path, shape: tuple[int, ...], bad_row: int = -1) -> None:
    """Latents of random numbers beside the training shards."""
    import hashlib

    import webdataset as wds
    from safetensors.torch import save

    manifest = json.loads((folder / "manifest.json").read_text())
    index = ShardIndex(folder, "train")
    generator, entries, row = torch.Generator().manual_seed(0), [], 0
    for shard in [entry for entry in manifest["shards"] if entry["split"] == "train"]:
        path = folder / f"latents-{shard['name']}"
        with wds.TarWriter(str(path), encoder=False, mtime=0) as tar:
            for _ in range(shard["count"]):
                names = ["hoi", "obj"] + ["sdedit"] * (index.info(row).sdedit_level is not None)
                here = (1, *shape[1:]) if row == bad_row else shape
                tensors = {name: torch.randn(here, generator=generator).half() for name in names}
                tar.write({"__key__": index.key(row), "latents.safetensors": save(tensors)})
                row += 1
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(
            {"name": path.name, "split": "train", "count": shard["count"], "sha256": digest, "of": shard["sha256"]}
        )
    manifest["latents"] = {"vae": {"id": "x", "sha256": "y"}, "shards": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
