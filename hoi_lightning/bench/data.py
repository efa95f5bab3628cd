"""`python -m hoi_lightning bench data`: the data path against what it is made of, and against other loaders.

Each row is a ratio of two rates, measured in turns on the training split: its median, with a 95 % bootstrap interval
over the turns. Rates are samples per CPU second of the process; the row with two processes goes by the clock, so let
nothing else run meanwhile. Status 1 where a target is missed.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_lightning.bench import readers
from hoi_lightning.bench.data_figures import Figure, index_figures, memory_figures, resume_figure
from hoi_lightning.generate import make_folder, write_text
from hoi_lightning.opening import whole_number
from hoi_lightning.provenance import git_commit

if TYPE_CHECKING:
    from hoi_lightning.data.reader import Shards

SECONDS = 0.3  # of one contestant's turn, about
PACKAGES = ("torch", "webdataset", "litdata", "simplejpeg", "numpy", "pillow")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what is compared.
        ours: median rate of ours, samples a second.
        theirs: median rate of the other.
        ratio: median of the turns' ratios.
        low: lower end of its 95 % interval.
        high: upper end.
        target: what the lower end must reach.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    target: float

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.low >= self.target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the measurement's flags."""
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="folders that `make shards` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if absent")
    parser.add_argument("--pairs", type=whole_number(2), default=20, help="turns of each comparison")


def run(args: argparse.Namespace) -> int:
    """Measure, and leave `data.json` and `data.md` in `--out`; 1 where a target is missed.

    Raises:
        InputError: there are no shards, or the folder cannot be written.
    """
    from hoi_lightning.data.reader import ShardIndex

    shards = [ShardIndex(folder, "train") for folder in args.shards]
    make_folder(args.out)
    results = []
    for folder, opened in zip(args.shards, shards, strict=True):
        with tempfile.TemporaryDirectory(dir=args.out) as scratch:
            rows, figures = measure(folder, opened, Path(scratch), args.pairs)
        results.append((folder, opened, rows, figures))
    with tempfile.TemporaryDirectory(dir=args.out) as scratch:
        index = index_figures(Path(scratch))
    about = provenance(args)
    record = {
        "provenance": about,
        "shards": [
            {
                "folder": str(folder),
                "side": opened.manifest.size,
                "num_samples": len(opened),
                "manifest_sha256": opened.manifest_hash,
                "rows": [asdict(row) | {"met": row.met} for row in rows],
                "figures": [asdict(figure) | {"met": figure.met} for figure in figures],
            }
            for folder, opened, rows, figures in results
        ],
        "index": [asdict(figure) | {"met": figure.met} for figure in index],
    }
    write_text(args.out / "data.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    write_text(args.out / "data.md", page(about, results, index))
    missed = [row.name for _, _, rows, _ in results for row in rows if not row.met]
    missed += [figure.name for _, _, _, figures in results for figure in figures if not figure.met]
    missed += [figure.name for figure in index if not figure.met]
    for name in missed:
        print(f"missed: {name}")
    print(args.out / "data.md")
    return 1 if missed else 0


def measure(root: Path, shards: "Shards", scratch: Path, pairs: int) -> tuple[list[Row], list[Figure]]:
    """All comparisons on one folder."""
    from tqdm import tqdm

    from hoi_lightning.data.reader import ShardIndex

    cached = ShardIndex(readers.with_latents(root, shards, scratch / "latents"), "train")
    memory, alone = readers.in_memory(shards), readers.ours(shards, 0)
    pair, stop = readers.two_processes(root)
    other = readers.litdata(shards, scratch / "litdata")
    cpu, clock = time.process_time, time.perf_counter
    contests: list[tuple[str, float, readers.Contestant, readers.Contestant | None, Clock]] = [
        ("decoding from memory, one process", 0.90, alone, memory, cpu),
        ("two processes that decode from memory and send nothing", 0.85, readers.ours(shards, 2), pair, clock),
        ('webdataset, `.decode("torchrgb")`, batched', 4.0, alone, readers.webdataset_default(root), cpu),
        ("webdataset with our decoders", 0.95, alone, readers.webdataset_tuned(root), cpu),
        ("litdata with our decoders", 0.95, alone, other, cpu),
        ("latents against pixels", 10.0, readers.ours(cached, 0, (), latents=True), alone, cpu),
        ("latents and hand masks against pixels", 0.0, readers.ours(cached, 0, ("hand",), latents=True), alone, cpu),
    ]
    rows = []
    for name, target, ours, theirs, timer in tqdm(contests, desc=f"{shards.manifest.size} px", unit="row"):
        if theirs is not None:
            rows.append(compete(name, ours, theirs, target, pairs, timer))
    stop()
    return rows, [resume_figure(root, len(shards), pairs), *memory_figures(shards)]


def compete(
    name: str, ours: readers.Contestant, theirs: readers.Contestant, target: float, pairs: int, timer: Clock
) -> Row:
    """Let both decode for about `SECONDS` in turns, the first to go changing each time."""
    contestants = (ours, theirs)
    batches = [_calibrate(contestant, timer) for contestant in contestants]
    rates: list[list[float]] = [[], []]
    for turn in range(pairs):
        for i in (turn % 2, 1 - turn % 2):
            start = timer()
            contestants[i](batches[i])
            rates[i].append(batches[i] * readers.BATCH / (timer() - start))
    ratios = np.array(rates[0]) / np.array(rates[1])
    low, high = median_interval(ratios)
    first, second = (statistics.median(values) for values in rates)
    return Row(name, first, second, float(np.median(ratios)), low, high, target)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def provenance(args: argparse.Namespace) -> dict[str, Any]:
    """What made the figures."""
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "git_commit": git_commit(),
        "pairs": args.pairs,
        "batch_size": readers.BATCH,
        "seed": 0,
        "interval": "95 % bootstrap of the median over turns",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def page(about: dict[str, Any], results: Sequence[Any], index: Sequence[Figure]) -> str:
    """The figures as a Markdown page."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    lines = [
        "# The data path",
        "",
        f"{about['processor']}, {about['cores']} cores; Python {about['python']}, {versions};",
    ]
    lines += [f"commit {about['git_commit']}, {about['pairs']} turns, batches of {about['batch_size']}.", ""]
    for folder, shards, rows, figures in results:
        lines += [f"## {shards.manifest.size} px: {len(shards)} samples of {folder.name}", ""]
        lines += [
            "| ours against | samples/s | theirs | ratio | 95 % interval | target | met |",
            "|---|---:|---:|---:|---|---:|---|",
        ]
        for row in rows:
            target, met = (f"≥ {row.target:g}", _word(row.met)) if row.target else ("", "")
            rates = f"{row.ours:.0f} | {row.theirs:.0f} | {row.ratio:.2f} | {row.low:.2f}-{row.high:.2f}"
            lines.append(f"| {row.name} | {rates} | {target} | {met} |")
        lines += ["", *_figure_table(figures), ""]
    return "\n".join([*lines, "## The index", "", *_figure_table(index)]) + "\n"


def _figure_table(figures: Sequence[Figure]) -> list[str]:
    lines = ["| what | value | limit | met |", "|---|---:|---:|---|"]
    for figure in figures:
        limit, met = ("", "") if figure.limit is None else (f"≤ {figure.limit:g}", _word(figure.met))
        lines.append(f"| {figure.name} | {figure.value:.3g} {figure.unit} | {limit} | {met} |")
    return lines


def _word(met: bool) -> str:
    return "yes" if met else "**no**"


def _calibrate(contestant: readers.Contestant, timer: Clock) -> int:
    """Batches that take about `SECONDS`."""
    contestant(2)
    start = timer()
    contestant(4)
    return max(2, round(4 * SECONDS / (timer() - start)))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
