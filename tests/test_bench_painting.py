"""`bench painting` on drawn shards, and the seam it measures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi_lightning.__main__ import main
from hoi_lightning.bench import painting
from hoi_lightning.bench.painting import samplers
from hoi_lightning.bench.painting_trials import load_pair, paster
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.metrics.detail import fine_detail
from hoi_lightning.metrics.seam import border_jump
from hoi_lightning.tasks import FusionNet
from tests.tiny import save_sd_folder, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "s", {"train": 4, "test": 3})


@pytest.fixture
def quick(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a bench of a random network whose slow sampler is the paper's, of three steps."""
    from hoi_lightning.diffusion import repaint

    monkeypatch.setitem(repaint.PRESETS, "paper", repaint.RePaintSampler(3, jump_length=1))
    monkeypatch.setattr(painting, "MANY_CALLS", 3)
    torch.manual_seed(0)
    fusionnet = FusionNet(str(save_sd_folder(tmp_path / "sd")), image_size=64)
    fusionnet.save_pretrained(tmp_path / "model", torch.float32)
    words = ["bench", "painting", "--fusionnet", str(tmp_path / "model"), "--shards", str(shards), "--steps", "2"]
    return [*words, "--slow-pictures", "2", "--train-shards", str(shards)]


def test_a_seam_adds_what_it_is_high() -> None:
    flat = np.full((32, 32, 3), 100, np.uint8)
    hole = np.zeros((32, 32), bool)
    hole[8:20, 10:24] = True
    assert border_jump(flat, hole) == 0
    stepped = flat.copy()
    stepped[hole] += 30
    assert border_jump(stepped, hole) == pytest.approx(30)
    assert border_jump(stepped.transpose(1, 0, 2), hole.T) == pytest.approx(30)
    assert np.isnan(border_jump(flat, np.ones_like(hole)))


def test_detail_is_the_variance_of_noise_and_blur_takes_it() -> None:
    """Of white noise, less the mean of nine of which it is one, 8/9 of the variance is left; a slope has none."""
    noise = np.random.default_rng(0).normal(128, 20, (256, 256, 1)).round().clip(0, 255).astype(np.uint8)
    picture, inside = np.repeat(noise, 3, axis=-1), np.zeros((256, 256), bool)
    inside[8:-8, 8:-8] = True
    assert fine_detail(picture, inside) == pytest.approx(400 * 8 / 9, rel=0.05)
    blurred = np.stack([np.roll(noise.astype(float), k, axis=0) for k in range(3)]).mean(0).round().astype(np.uint8)
    assert fine_detail(np.repeat(blurred, 3, axis=-1), inside) < 0.5 * fine_detail(picture, inside)
    slope = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    assert fine_detail(slope, inside) == pytest.approx(0, abs=1e-9)
    half = np.where(np.arange(256)[:, None, None] < 128, picture, np.uint8(100))
    left = np.broadcast_to(np.arange(256)[:, None] >= 130, (256, 256))
    assert fine_detail(half, left) == 0
    assert np.isnan(fine_detail(picture, np.zeros_like(inside)))


def test_a_pasted_hand_lies_at_the_recorded_layout(shards: Path) -> None:
    """The drawn hands are their layouts' proxies, so the pasted pixels are those of the layout it is moved to."""
    from hoi_lightning.hand_proxy import hole_mask

    index = ShardIndex(shards, "test")
    pair = load_pair(index, 0)
    pasted = paster(ShardIndex(shards, "train"), 0)([pair], [1])[0]
    changed = np.abs(pasted.astype(int) - pair.obj).max(-1) > 15
    proxy, wide = (hole_mask(pair.info.layout.to_tensor(), 64, d)[0].bool().numpy() for d in (0, 0.2))
    a, x, y, _, _ = pair.info.layout.to_tensor().tolist()
    axis = (np.arange(64) + 0.5) / 32 - 1
    palm = np.hypot(axis[None] - x, axis[:, None] - y) < a * a / 2
    assert changed[palm].mean() > 0.95
    assert not changed[~wide].any()
    assert changed[proxy & ~palm].any()  # a forearm that ended at its own picture's border ends here, too


def test_arms_differ_in_what_they_say() -> None:
    arms = samplers([10])
    assert list(arms) == ["off-10", "replace-10", "repaint-r2-10", "repaint-r10-10", "fast", "paper"]
    assert arms["repaint-r10-10"].jump_n_sample == 10
    assert arms["off-10"].composition == "off"


def test_exhausted_memory_names_settings_of_the_bench(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 24 GiB")

    FusionNet(str(save_sd_folder(tmp_path / "sd")), image_size=64).save_pretrained(tmp_path / "model", torch.float32)
    monkeypatch.setattr(FusionNet, "_predict", exhausted)
    words = ["--fusionnet", str(tmp_path / "model"), "--shards", str(shards), "--out", str(tmp_path / "out")]
    assert main(["bench", "painting", *words, "--device", "cpu"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert "--device cpu: the GPU's memory is exhausted (finished pictures are kept)" in line
    assert "--fusionnet" in line
    assert "--weights" not in line


def test_the_bench_leaves_a_table_a_sheet_and_resumes(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*quick, "--out", str(out)]
    large = write_shards(tmp_path / "large", {"train": 2, "test": 2}, size=128)
    assert main([*words, "--shards", str(large)]) == 2
    assert f"pictures of 128 pixels, but {tmp_path / 'model'} paints 64" in capsys.readouterr().err
    assert main(words) in (0, None)
    result = json.loads((out / "painting.json").read_text())
    rows = result["rows"]
    assert list(rows) == ["object", "pasted", "off-2", "replace-2", "repaint-r2-2", "repaint-r10-2", "fast", "paper"]
    assert rows["off-2"]["num_pictures"] == 3
    assert rows["paper"]["num_pictures"] == 2
    assert rows["off-2"]["network_calls"] == 2
    assert all(rows[name]["outside_max_diff"] == 0 for name in list(rows)[2:])
    assert rows["object"]["seam"] < 1
    gap = rows["off-2"]["worse_than"]["paper"]
    assert gap["difference"] <= gap["at_most"] <= gap["interval"][1]
    assert (out / "painting.png").is_file()
    times = {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    assert main(words) in (0, None)
    assert times == {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    assert "| off-2 |" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in times}
    assert main([*words, "--seed", "1"]) in (0, None)
    changed = {path.parent.name for path in times if path.read_bytes() != before[path]}
    assert changed == set(rows) - {"object"}
    assert json.loads((out / "painting.json").read_text())["provenance"]["seed"] == 1


def test_chosen_samplers_and_another_network(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other network is painted with `fast`: the same weights give the same pictures, other weights others."""
    torch.manual_seed(1)
    other = FusionNet(str(save_sd_folder(tmp_path / "sd2")), image_size=64)
    other.save_pretrained(tmp_path / "other", torch.float32)
    model = quick[quick.index("--fusionnet") + 1]
    words = [*quick, "--out", str(tmp_path / "out"), "--samplers", "off-2", "fast"]
    others = ["--others", f"same={model}", f"other={tmp_path / 'other'}"]
    assert main([*words, *others]) in (0, None)
    result = json.loads((tmp_path / "out" / "painting.json").read_text())
    assert list(result["rows"]) == ["object", "pasted", "off-2", "fast", "same", "other"]
    gaps = {name: result["rows"][name]["worse_than"]["fast"]["difference"] for name in ("same", "other")}
    assert gaps["same"] == 0 != gaps["other"]
    assert result["provenance"]["other_sha256"] != result["provenance"]["fusionnet_sha256"]
    capsys.readouterr()
    assert main([*words, "--samplers", "off-7"]) == 2
    assert "--samplers off-7: no row of that name; there are off-2, " in capsys.readouterr().err
    assert main([*words, "--others", f"fast={model}"]) == 2
    assert "--others fast=…: the table has a row of that name" in capsys.readouterr().err


def test_pictures_painted_together_are_those_painted_alone(quick: list[str], tmp_path: Path) -> None:
    """Batches, and bf16 in place of fp32, change at most what rounding does."""
    from PIL import Image

    pictures = {}
    for name, more in {
        "together": ["2", "--precision", "32"],
        "alone": ["1"],
        "bf16": ["2", "--precision", "bf16"],
    }.items():
        assert main([*quick, "--pictures", "2", "--out", str(tmp_path / name), "--batch-size", *more]) in (0, None)
        files = sorted((tmp_path / name / "pictures" / "off-2").glob("*.png"))
        pictures[name] = np.stack([np.asarray(Image.open(file)).astype(int) for file in files])
    assert np.abs(pictures["together"] - pictures["alone"]).max() <= 2
    assert 0 < np.abs(pictures["together"] - pictures["bf16"]).max() <= 4
