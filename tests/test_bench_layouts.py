"""`bench layouts`: a perfect sampler is told from a bad one, and truth is read as it was written."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hoi_lightning.__main__ import main
from hoi_lightning.bench.layouts import ROWS
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.data.truth import TruthIndex
from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance
from hoi_lightning.tasks import MaskNet
from tests.test_cli import CONFIGS, TINY
from tests.truth_shards import RULES, brightness_of, draw, write_truth_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_truth_shards(tmp_path_factory.mktemp("truth") / "ho3pairs", {"train": 20, "val": 3, "test": 6})


class Sampler:
    """Draws the true distribution, or one mistake away from it."""

    checkpoint_hash = "c" * 64
    device = torch.device("cpu")
    sampler, sample_steps = "ddim", 25

    def __init__(self, mistake: str | None = None) -> None:
        self.mistake = mistake

    def sample(self, obj: Tensor, seeds: list[int], guidance: Guidance | None = None, **options: Any) -> Tensor:
        rows = []
        for seed in seeds:
            layouts, rules = draw(0.0 if self.mistake == "blind" else brightness_of(obj[0]), 8, seed % 2**32)
            rows.append(layouts[rules.index("far")] if self.mistake == "one rule" and "far" in rules else layouts[0])
        drawn = torch.stack(rows)
        if self.mistake == "leaks" and options.get("num_steps") == 10:
            drawn[:, 1] += 0.5
        if guidance is not None and guidance.fixed is not None:
            drawn = torch.where(guidance.fixed.isnan(), drawn, guidance.fixed)
        return drawn


def bench(shards: Path, out: Path, monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(MaskNet, "load", lambda *_: sampler)
    checkpoint = out / "mask.ckpt"
    out.mkdir()
    checkpoint.touch()
    words = ["--masknet", str(checkpoint), "--shards", str(shards), "--out", str(out), "--draws", "64", "--guided", "1"]
    status = main(["bench", "layouts", *words])
    assert (out / "layouts.png").is_file()
    return status, json.loads((out / "layouts.json").read_text())


def met(result: dict[str, Any], word: str) -> bool:
    (target,) = [target for target in result["targets"] if word in target["target"]]
    return target["met"]


def test_a_perfect_sampler_meets_every_target_about_its_distribution(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    status, result = bench(shards, tmp_path / "out", monkeypatch, Sampler())
    assert set(result["distances"]) == set(ROWS)
    for word in ("marginal's ≤", "shuffled's", "≥ 5 %", "contact", "DDIM", "exactly"):
        assert met(result, word), word
    assert status == 1, "it does not follow the heat map"
    assert not met(result, "heat map")
    distances = {row: figure["value"] for row, figure in result["distances"].items()}
    assert abs(distances["second"]) < 0.05 > abs(distances["masknet"])
    assert min(distances[row] for row in ("constant", "marginal", "shuffled")) > 0.3
    assert {rule["rule"]: rule["true"] for rule in result["rules"]} == pytest.approx(RULES, abs=0.05)
    page = capsys.readouterr().out
    assert all(name in page for name in ROWS.values())
    assert result["provenance"]["num_pictures"] == result["provenance"]["num_instances"] == 6


@pytest.mark.parametrize(
    ("mistake", "missed"),
    [("blind", "shuffled's"), ("one rule", "≥ 5 %"), ("leaks", "DDIM")],
)
def test_each_mistake_is_found(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str, missed: str
) -> None:
    status, result = bench(shards, tmp_path / "out", monkeypatch, Sampler(mistake))
    assert status == 1
    assert not met(result, missed)


def test_another_masknet_is_compared_picture_by_picture(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        MaskNet, "load", lambda path, _: Sampler(None if Path(path).stem in ("good", "same") else "blind")
    )
    words = ["--masknet", "good.ckpt", "--others", "twin=same.ckpt", "worse=bad.ckpt", "--shards", str(shards),
             "--out", str(tmp_path), "--draws", "32", "--guided", "1"]  # fmt: skip
    main(["bench", "layouts", *words])
    others = json.loads((tmp_path / "layouts.json").read_text())["others"]
    assert list(others) == ["MaskNet", "twin", "worse"]
    assert others["twin"]["difference"] == {"value": 0, "low": 0, "high": 0}, "the noise is the same"
    assert others["worse"]["difference"]["low"] > 0
    assert all(row["ms_per_layout"] > 0 for row in others.values())
    assert "| worse |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "layouts", *words[:2], "--others", "bad.ckpt", *words[5:]])
    assert "--others: write NAME=PATH, got 'bad.ckpt'" in capsys.readouterr().err


def test_more_draws_than_the_truth_spares_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(MaskNet, "load", lambda path, _: Sampler(None))
    words = ["--masknet", "good.ckpt", "--shards", str(shards), "--out", str(tmp_path), "--draws", "129"]
    assert main(["bench", "layouts", *words]) == 2
    assert "--draws 129: the truth is 256 layouts a picture" in capsys.readouterr().err


def test_exhausted_memory_names_settings_of_the_bench(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Large(Sampler):
        def sample(self, *_: Any, **options: Any) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 24 GiB")

    monkeypatch.setattr(MaskNet, "load", lambda *_: Large())
    words = ["--masknet", "large.ckpt", "--shards", str(shards), "--out", str(tmp_path), "--draws", "64"]
    assert main(["bench", "layouts", *words, "--device", "cpu"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert "--device cpu: the GPU's memory is exhausted; lower --draws (now 64)" in line
    assert "--weights" not in line


def test_truth_is_read_as_it_was_written(shards: Path) -> None:
    index, truth = ShardIndex(shards, "test"), TruthIndex(shards, "test")
    for i in range(len(index)):
        pair = index.sample(i, ["obj"])
        known = truth.truth(pair.info.key)
        assert np.abs(known.clean.astype(int) - pair.obj).mean() < 3, "the shard's is a JPEG"
        assert known.shares == RULES
        assert known.layouts.shape == (256, 5)
        assert len(known.rules) == 256
        assert np.array_equal(truth.layouts(pair.info.key), known.layouts)
    with pytest.raises(InputError, match=r"sample nobody has no layouts\.npy"):
        truth.layouts("nobody")


def test_shards_without_truth_are_named(shards: Path, tmp_path: Path) -> None:
    assert TruthIndex.find(tmp_path, "test") is None
    assert TruthIndex.find(shards, "train") is None
    with pytest.raises(InputError, match="no truth of the train split"):
        TruthIndex(shards, "train")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not an HO3Pairs manifest"):
        TruthIndex(tmp_path, "test")


def test_validation_logs_the_energy_distance_where_truth_is(shards: Path, tmp_path: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    assert main([
        "fit", "-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"), "--data.shards",
        str(shards), "--trainer.default_root_dir", str(tmp_path), "--run", "run", *TINY, "--trainer.max_steps=2",
        "--trainer.val_check_interval=2", "--trainer.logger", json.dumps([logger]),
    ]) == 0  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "run/csv/version_0/metrics.csv").open()))
    values = [float(row["val/energy_distance"]) for row in rows if row.get("val/energy_distance")]
    assert values
    assert min(values) > 0.1, "an untrained network is far away"
