"""`bench data`: its arithmetic, and that it runs and says what it found."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from hoi_lightning.bench import data, data_figures, readers
from hoi_lightning.data.reader import ShardIndex
from tests.tiny import write_shards


def sleeper(seconds_a_batch: float, spent: list[float]) -> readers.Contestant:
    """Spends time of a made-up clock."""

    def run(batches: int) -> None:
        spent[0] += batches * seconds_a_batch

    return run


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_a_ratio_is_that_of_the_rates(factor: float) -> None:
    spent = [0.0]
    row = data.compete("x", sleeper(0.01, spent), sleeper(0.01 * factor, spent), 2.0, 5, lambda: spent[0])
    assert row.ratio == pytest.approx(factor)
    assert row.low == pytest.approx(factor)
    assert row.ours == pytest.approx(readers.BATCH / 0.01)
    assert row.met == (factor > 2)


def test_the_interval_holds_the_median_and_narrows() -> None:
    rng = np.random.default_rng(1)
    few, many = (data.median_interval(rng.normal(1, 0.1, count)) for count in (10, 1000))
    assert few[0] < 1 < few[1]
    assert many[1] - many[0] < few[1] - few[0]


def test_contestants_decode_the_same(tmp_path: Path) -> None:
    """In the stream's order the readers fill the same memory with the same samples."""
    index = ShardIndex(write_shards(tmp_path / "s", {"train": readers.BATCH}, per_shard=readers.BATCH), "train")
    buffers = readers.Buffers(index.manifest.size)
    for i in range(readers.BATCH):
        buffers.decode(i, index.read(i, readers.MEMBERS))
        expected = index.sample(i, readers.FIELDS)
        np.testing.assert_array_equal(buffers.pictures[0, i], expected.hoi)
        np.testing.assert_array_equal(buffers.hands[i], expected.hand)
        np.testing.assert_array_equal(buffers.layouts[i], expected.info.layout.to_tensor())


def test_a_stream_is_epoch_after_epoch(shards: Path) -> None:
    index = ShardIndex(shards, "train")
    stream = readers.Stream(index)
    stream.batches = 3
    batches = [indices for _, indices in stream]
    assert [len(indices) for indices in batches] == [readers.BATCH] * 3
    seen = np.concatenate(batches)
    for start in range(0, len(seen) - len(index), len(index)):
        assert sorted(seen[start : start + len(index)]) == list(range(len(index)))


def test_the_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "s", {"train": 40, "val": 2})
    monkeypatch.setattr(data, "SECONDS", 0.01)
    monkeypatch.setattr(data_figures, "INDEX_SAMPLES", 4000)
    alone = readers.in_memory(ShardIndex(folder, "train"))
    monkeypatch.setattr(readers, "two_processes", lambda root: (alone, lambda: None))
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    out = tmp_path / "out"
    assert data.run(parser.parse_args(["--shards", str(folder), "--out", str(out), "--pairs", "2"])) in (0, 1)
    found = json.loads((out / "data.json").read_text())
    (result,) = found["shards"]
    assert result["num_samples"] == 40
    for row in result["rows"]:
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
    names = [row["name"] for row in result["rows"]]
    page = (out / "data.md").read_text()
    assert all(name in page for name in names)
    assert len(names) >= 6
    assert sorted(path.name for path in out.iterdir()) == ["data.json", "data.md"]
