"""Cached latents: the same as encoding on the fly, and a FusionNet that trains on them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from data_prep import latents as latents_verb
from data_prep.__main__ import main as data_prep
from hoi_lightning.__main__ import main
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.errors import InputError
from hoi_lightning.networks.autoencoder import load_vae
from hoi_lightning.tasks import Autoencoder, FusionNet
from tests.tiny import write_shards
from tests.whole_folder import read_tar, write_folder

CONFIG = Path(__file__).parent.parent / "configs/mini/fusionnet.yaml"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Autoencoder(channels=8).export(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another autoencoder."""
    folder = tmp_path_factory.mktemp("other")
    Autoencoder(channels=8).export(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards without latents."""
    return write_shards(tmp_path_factory.mktemp("plain") / "s", {"train": 13, "val": 4}, per_shard=5)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, plain: Path, base: Path) -> Path:
    root = shutil.copytree(plain, tmp_path_factory.mktemp("cached") / "s")
    assert data_prep(["latents", "--shards", str(root), "--vae", str(base), "--batch-size", "2"]) == 0
    return root


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}  # an index file is no result


def test_cached_latents_are_the_encoder_s_own(cached: Path, base: Path) -> None:
    index, latents = ShardIndex(cached, "train"), load_vae(str(base))
    assert len(index) == 13
    for i in (0, 7, 12):
        sample = index.sample(i, ("hoi", "obj"))
        for name, code in index.latents(i).items():
            picture = torch.from_numpy(getattr(sample, name)).permute(2, 0, 1)[None].float() / 127.5 - 1
            torch.testing.assert_close(code.float(), latents.encode(picture)[0], atol=5e-3, rtol=5e-3)


def test_the_shards_stay_as_they_are(plain: Path, cached: Path) -> None:
    before, after = bytes_of(plain), bytes_of(cached)
    for shard in json.loads(before["manifest.json"])["shards"]:
        assert after[shard["name"]] == before[shard["name"]]
    old, new = json.loads(before["manifest.json"]), json.loads(after["manifest.json"])
    assert {name: value for name, value in new.items() if name != "latents"} == old


def test_additional_shards_follow_the_training_shards(cached: Path, base: Path) -> None:
    files = bytes_of(cached)
    manifest = json.loads(files["manifest.json"])
    about, entries = manifest["latents"]["vae"], manifest["latents"]["shards"]
    assert [entry["name"] for entry in entries] == [f"latents-train-{number:06d}.tar" for number in range(3)]
    hashes = {shard["name"]: shard["sha256"] for shard in manifest["shards"]}
    for entry in entries:
        of = entry["name"].removeprefix("latents-")
        assert entry["of"] == hashes[of]
        assert hashlib.sha256(files[entry["name"]]).hexdigest() == entry["sha256"]
        assert len(files[entry["name"]]) == entry["bytes"]
        keys = [record["__key__"] for record in read_tar(cached / entry["name"])]
        assert keys == [record["__key__"] for record in read_tar(cached / of)]
    config = load_vae(str(base)).vae.config
    assert (about["id"], about["revision"]) == (str(base), None)
    assert about["scaling_factor"] == config.scaling_factor
    assert ShardIndex(cached, "train").latents_vae == about
    assert ShardIndex(cached, "val").latents_vae == about


def test_a_second_run_changes_nothing(cached: Path, base: Path) -> None:
    before = bytes_of(cached)
    assert data_prep(["latents", str(cached), "--vae", str(base)]) == 0
    assert data_prep(["latents", str(cached), "--vae", str(base), "--overwrite"]) == 0
    assert before == bytes_of(cached)


def test_two_autoencoders_never_mix(cached: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = shutil.copytree(cached, tmp_path / "s")
    before = bytes_of(root)
    assert data_prep(["latents", str(root), "--vae", str(other)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert before == bytes_of(root)
    assert data_prep(["latents", str(root), "--vae", str(other), "--overwrite"]) == 0
    index = ShardIndex(root, "train")
    picture = torch.from_numpy(index.sample(0, ("obj",)).obj).permute(2, 0, 1)[None].float() / 127.5 - 1
    code = load_vae(str(other)).encode(picture)[0]
    torch.testing.assert_close(index.latents(0)["obj"].float(), code, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("first", ["nothing", "another autoencoder's"])
def test_a_stopped_run_goes_on(
    plain: Path, cached: Path, base: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    root = shutil.copytree(plain, tmp_path / "s")
    if first != "nothing":
        assert data_prep(["latents", str(root), "--vae", str(other)]) == 0
    write = latents_verb._write

    def stop(shard: Path, *args: object) -> None:
        if shard.name == "train-000001.tar":
            raise KeyboardInterrupt
        write(shard, *args)

    command = ["latents", str(root), "--vae", str(base), "--batch-size", "2"]
    monkeypatch.setattr(latents_verb, "_write", stop)
    assert data_prep([*command, "--overwrite"]) == 130
    with pytest.raises(InputError, match=r"no cached latents for train-000001\.tar"):
        ShardIndex(root, "train").latents(0)

    def resume(shard: Path, *args: object) -> None:
        assert shard.name != "train-000000.tar"
        write(shard, *args)

    monkeypatch.setattr(latents_verb, "_write", resume)
    assert data_prep(command) == 0
    assert bytes_of(root) == bytes_of(cached)


def test_latents_of_a_shard_rebuilt_since_are_none(cached: Path, base: Path, tmp_path: Path) -> None:
    root = shutil.copytree(cached, tmp_path / "s")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["latents"]["shards"][2]["of"] = "0" * 64  # the sha256 that the shard had then
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"train-000002\.tar"):
        ShardIndex(root, "train").open_latents()
    assert data_prep(["latents", str(root), "--vae", str(base)]) == 0
    ShardIndex(root, "train").open_latents()


def test_an_sdedit_copy_has_latents_as_well(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_folder(tmp_path / "s", sdedit=True)
    assert data_prep(["latents", str(root), "--vae", str(base)]) == 0
    latents = ShardIndex(root, "train").latents(3)
    assert set(latents) == {"hoi", "obj", "sdedit"}
    assert {code.dtype for code in latents.values()} == {torch.float16}
    capsys.readouterr()
    assert data_prep(["verify", str(root), "--workers", "1"]) == 0, capsys.readouterr().out


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


def test_fusionnet_refuses_another_autoencoder_s_latents(
    cached: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = ["fit", "-c", str(CONFIG), "--data.shards", str(cached), "--model.pretrained", str(other), "--run", "run"]
    args += ["--model.unet_channels=[8,8,16]", "--trainer.default_root_dir", str(tmp_path), "--trainer.logger=false"]
    assert main(args) == 2
    assert f"--vae {other} --overwrite" in capsys.readouterr().err


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
