"""Laws of a run's log when the run was stopped and went on."""

import csv
from pathlib import Path

from hoi_lightning.run_log import log_text, read_curves, read_log


def test_the_curves_are_joined_and_the_later_file_wins(training_run: Path, tmp_path: Path) -> None:
    curves = read_curves(training_run)
    assert curves["train/loss"] == ([20, 30], [0.25, 0.125])
    assert curves["val/loss"] == ([10], [0.9])
    assert read_curves(tmp_path) == {}


def test_a_row_longer_than_its_header_is_read(tmp_path: Path) -> None:
    _write(tmp_path, 0, "step,loss", "1,0.5,7")
    assert read_curves(tmp_path) == {"loss": ([1], [0.5])}
    assert log_text(tmp_path) == "step,loss\n1,0.5\n"


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    _write(tmp_path, 0, "epoch,step,train/loss", "0,10,0.5", "0,20,0.4", ",,0.3")
    _write(tmp_path, 1, "step,val/loss,epoch", "20,0.9,0", "30,,1")
    before = read_curves(tmp_path)
    text = log_text(tmp_path)
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert set(rows[0]) == {"epoch", "step", "train/loss", "val/loss"}
    (tmp_path / "again/csv/version_0").mkdir(parents=True)
    (tmp_path / "again/csv/version_0/metrics.csv").write_text(text)
    assert read_curves(tmp_path / "again") == before
    assert log_text(tmp_path / "again") == text


def test_no_log_is_no_text(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    assert log_text(tmp_path) == ""


def _write(run: Path, version: int, *lines: str) -> None:
    folder = run / f"csv/version_{version}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
