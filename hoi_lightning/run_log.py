"""A training run's CSV log, whole although a run that was stopped and went on has one file for each time."""

import csv
import io
import math
from pathlib import Path

Curves = dict[str, tuple[list[int], list[float]]]


def read_log(run: Path) -> list[dict[str, str]]:
    """Read all rows that say their step; where two files overlap, the later one's count.

    Args:
        run: the run's folder, with `csv/version_N/metrics.csv`.
    """
    rows: list[dict[str, str]] = []
    for file in sorted(run.glob("csv/version_*/metrics.csv"), key=lambda file: int(file.parent.name.split("_")[1])):
        with file.open(newline="", encoding="utf-8") as lines:
            fresh = [row for row in csv.DictReader(lines) if row.get("step")]
        first = min(map(_step, fresh), default=math.inf)
        rows = [row for row in rows if _step(row) < first] + fresh
    return rows


def log_text(run: Path) -> str:
    """The rows of `read_log` as CSV, its columns those of all files; empty without any row."""
    rows = read_log(run)
    names = dict.fromkeys(name for row in rows for name in row if name is not None)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_curves(run: Path) -> Curves:
    """Read the finite values of each column: name → (steps, values)."""
    curves: Curves = {}
    for row in read_log(run):
        for name, text in row.items():
            if name in ("step", "epoch", None) or not text or not math.isfinite(float(text)):
                continue
            steps, values = curves.setdefault(name, ([], []))
            steps.append(_step(row))
            values.append(float(text))
    return curves


def _step(row: dict[str, str]) -> int:
    return int(float(row["step"]))
