"""The leak probe: it finds a trace that is there, finds none where there is none, and says how sure it is."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_prep import leak
from data_prep.leak import Thumbnails, bootstrap, measure, summarise
from data_prep.probe import SIDE, Probe, best_constant
from data_prep.truth import clean_picture
from hoi_lightning.errors import InputError
from tests import tiny


def drawn(count: int, seed: int) -> Thumbnails:
    """A square that says nothing, and in `removed` a blot where the hand was."""
    rng = np.random.default_rng(seed)
    clean = np.repeat(rng.integers(60, 200, (count, 1, 1, 3), np.uint8), SIDE, 1).repeat(SIDE, 2)
    clean[:, 20:44, 20:44] = rng.integers(0, 255, (count, 1, 1, 3), np.uint8)
    centres = rng.uniform(-0.6, 0.6, (count, 2))
    traced = clean.copy()
    for picture, centre in zip(traced, ((centres + 1) * SIDE / 2).round().astype(int), strict=True):
        cv2.circle(picture, tuple(map(int, centre)), 9, (255, 0, 255), -1)
    instances = [f"Mug/N{index % 10:02d}" for index in range(count)]
    return Thumbnails({"clean": clean, "removed": traced}, centres, instances, {"none": count})


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only wait for a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread(_plain_process):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def measured(one_thread) -> tuple[dict[str, np.ndarray], Thumbnails]:
    test = drawn(200, 1)
    return measure(drawn(600, 0), test, steps=80, seed=0), test


def test_a_trace_is_found_and_its_absence_too(measured):
    errors, test = measured
    result = summarise(errors, test, seed=0)
    assert errors["removed"].mean() < 0.6 * errors["constant"].mean()
    assert errors["clean"].mean() > 0.9 * errors["constant"].mean()
    assert result["leaks"]["removed"]["low"] > 0
    assert list(result["leaks"]) == ["removed"]


def test_the_same_pictures_under_another_name_leak_nothing():
    small = drawn(64, 0)
    twins = dataclasses.replace(small, pictures={"clean": small.pictures["clean"], "sdedit": small.pictures["clean"]})
    result = summarise(measure(twins, twins, steps=3, seed=0), twins, seed=0)
    assert result["leaks"] == {"sdedit": {"value": 0, "low": 0, "high": 0}}


def test_without_clean_pictures_there_is_no_leak_to_speak_of(measured):
    errors, test = measured
    assert summarise({"removed": errors["removed"]}, test, seed=0)["leaks"] == {}


def test_the_probe_is_small():
    assert sum(weights.numel() for weights in Probe().parameters()) < 500_000


def test_training_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    small = drawn(8, 0)
    measure(small, small, steps=1, seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_the_constant_is_the_best_one():
    centres = np.random.default_rng(0).exponential(size=(300, 2))

    def error(point: np.ndarray) -> float:
        return float(np.linalg.norm(centres - point, axis=1).mean())

    best = best_constant(centres)
    for offset in np.random.default_rng(1).normal(size=(20, 2)) * 0.1:
        assert error(best) <= error(best + offset)
    assert error(best) < error(centres.mean(0))


def test_the_interval_is_over_instances():
    rng = np.random.default_rng(0)
    level = rng.normal(size=20).repeat(50)
    narrow = bootstrap(level, [f"Mug/N{index}" for index in range(1000)], seed=0)
    wide = bootstrap(level, [f"Mug/N{index // 50}" for index in range(1000)], seed=0)
    assert narrow.value == wide.value == pytest.approx(level.mean())
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> tuple[Path, Path]:
    """Tiny shards, and the truth they would be from."""
    root = tmp_path_factory.mktemp("leak")
    shards = tiny.write_shards(root / "ho3pairs", {"train": 12, "val": 2, "test": 6})
    (root / "hoi4d/truth").mkdir(parents=True)
    for index in range(20):
        sample = tiny.sample(index)
        stem = root / "hoi4d/truth" / sample.info.sequence.replace("/", "_")
        cv2.imwrite(f"{stem}.clean.png", cv2.cvtColor(sample.obj, cv2.COLOR_RGB2BGR))
        np.save(f"{stem}.layouts.npy", np.zeros((1, 5), np.float32))
        Path(f"{stem}.rules.json").write_text(json.dumps({"crop": [int(value) for value in sample.info.crop]}))
    return shards, root / "hoi4d"


def parsed(*words: str):
    import argparse

    parser = argparse.ArgumentParser()
    leak.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_command_reads_shards_and_truth(tree, tmp_path):
    shards, root = tree
    out = tmp_path / "out"
    words = ["--shards", str(shards), "--out", str(out), "--truth", str(root), "--steps", "2"]
    leak.run(parsed(*words, "--remover-override", "telea"))
    result = json.loads((out / "leak.json").read_text())
    assert list(result["errors"]) == ["constant", "clean", "removed", "telea"]
    assert list(result["leaks"]) == ["removed", "telea"]
    assert (result["num_train"], result["num_test"], result["num_test_instances"]) == (12, 6, 6)
    assert result["removers"] == {"none": 6}
    for estimate in [*result["errors"].values(), *result["leaks"].values()]:
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert (out / "leak.md").read_text().count("\n| ") == 5
    assert (out / "leak.png").read_bytes()[1:4] == b"PNG"
    before = (out / "leak.json").read_bytes()
    leak.run(parsed(*words, "--remover-override", "telea"))
    assert (out / "leak.json").read_bytes() == before


def test_the_clean_picture_is_the_samples_own_crop(tree):
    _, root = tree
    sample = tiny.sample(3)
    np.testing.assert_array_equal(clean_picture(root / "truth", sample.info, 64), sample.obj)
    moved = dataclasses.replace(sample.info, crop=(104.0, 100.0, 168.0, 164.0))
    np.testing.assert_array_equal(clean_picture(root / "truth", moved, 64)[:, :60], sample.obj[:, 4:])


def test_bad_input_is_one_line(tree, tmp_path):
    shards, _ = tree
    no_test = tiny.write_shards(tmp_path / "train-only", {"train": 2})
    for words, what in (
        (["--shards", str(tmp_path / "nowhere")], "--shards"),
        (["--shards", str(no_test)], "no test shard"),
        (["--shards", str(shards), "--truth", str(tmp_path)], "--truth"),
        (["--shards", str(shards), "--steps", "0"], "--steps"),
    ):
        with pytest.raises(InputError, match=what) as raised:
            leak.run(parsed("--out", str(tmp_path / "out"), *words))
        assert "\n" not in str(raised.value)
