"""Cached latents: the same as encoding on the fly, and a FusionNet that trains on them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from data_prep.__main__ import main as data_prep
from hoi_lightning.__main__ import main
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.networks.autoencoder import load_vae
from hoi_lightning.tasks import Autoencoder, FusionNet
from tests.tiny import write_shards

CONFIG = Path(__file__).parent.parent / "configs/mini/fusionnet.yaml"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Autoencoder(channels=8).export(folder)
    return folder


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    root = write_shards(tmp_path_factory.mktemp("cached") / "s", {"train": 13, "val": 4}, per_shard=5)
    assert data_prep(["latents", "--shards", str(root), "--vae", str(base), "--batch-size", "2"]) == 0
    return root


def test_cached_latents_are_the_encoder_s_own(cached: Path, base: Path) -> None:
    index, latents = ShardIndex(cached, "train"), load_vae(str(base))
    assert len(index) == 13
    for i in (0, 7, 12):
        sample = index.sample(i, ("hoi", "obj"))
        for name, code in index.latents(i).items():
            picture = torch.from_numpy(getattr(sample, name)).permute(2, 0, 1)[None].float() / 127.5 - 1
            torch.testing.assert_close(code.float(), latents.encode(picture)[0], atol=5e-3, rtol=5e-3)


def test_the_manifest_tells_the_truth_and_a_second_run_changes_nothing(cached: Path, base: Path) -> None:
    before = {path.name: path.read_bytes() for path in cached.iterdir()}
    for shard in json.loads(before["manifest.json"])["shards"]:
        assert hashlib.sha256(before[shard["name"]]).hexdigest() == shard["sha256"]
        assert len(before[shard["name"]]) == shard["bytes"]
    assert data_prep(["latents", "--shards", str(cached), "--vae", str(base)]) == 0
    assert before == {path.name: path.read_bytes() for path in cached.iterdir()}


def test_fusionnet_trains_on_cached_latents_and_opens_from_anywhere(
    cached: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    args = ["fit", "-c", str(CONFIG), "--data.shards", str(cached), "--model.pretrained", base.name, "--run", "run"]
    args += ["--model.unet_channels=[8,8,16]", "--model.image_size=64", "--model.crop=12", "--data.batch_size=4"]
    args += ["--trainer.max_steps=3", "--trainer.default_root_dir", str(tmp_path), "--trainer.logger=false"]
    assert main(args) == 0
    monkeypatch.chdir(tmp_path)
    assert FusionNet.load("run/checkpoints/last.ckpt").image_size == 64


def test_without_a_cache_the_command_is_named(
    shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = ["fit", "-c", str(CONFIG), "--data.shards", str(shards), "--model.pretrained", str(base), "--run", "run"]
    args += ["--model.unet_channels=[8,8,16]", "--trainer.default_root_dir", str(tmp_path), "--trainer.logger=false"]
    assert main(args) == 2
    assert "python -m data_prep latents" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--shards", "nowhere"), ("--vae", "nowhere")])
def test_missing_input_is_one_line(
    cached: Path, base: Path, capsys: pytest.CaptureFixture, flag: str, value: str
) -> None:
    args = {"--shards": str(cached), "--vae": str(base), flag: value}
    assert data_prep(["latents", *(word for pair in args.items() for word in pair)]) == 2
    assert f"error: {flag} {value}" in capsys.readouterr().err


def test_a_masked_context_refuses_the_cache(
    cached: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = ["fit", "-c", str(CONFIG), "--data.shards", str(cached), "--model.pretrained", str(base), "--run", "run"]
    args += ["--model.unet_channels=[8,8,16]", "--model.image_size=64", "--model.object_context=masked"]
    args += ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger=false"]
    assert main(args) == 2
    assert "--model.object_context full" in capsys.readouterr().err
