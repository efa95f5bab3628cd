"""What `bench data` tells in plain numbers: resuming, memory, and an index of the size of HO3Pairs'."""

import os
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hoi_lightning.bench import readers

if TYPE_CHECKING:
    from hoi_lightning.data.reader import Shards

INDEX_SAMPLES = 364_000


@dataclass(frozen=True)
class Figure:
    """One plain number.

    Attributes:
        name: what it is.
        value: of it.
        unit: of the value.
        limit: what it must not exceed; None = it is only told.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def met(self) -> bool:
        """Whether the limit is kept."""
        return self.limit is None or self.value <= self.limit


def resume_figure(root: Path, num_samples: int, pairs: int) -> Figure:
    """CPU time until the first batch, index and all, with 90 % of an epoch behind, in units of that at its start."""
    from hoi_lightning.data.datamodule import HoiDataModule

    batch_size = max(1, min(readers.BATCH, num_samples // 30))

    def first_batch(share: float) -> float:
        start = time.process_time()
        data = HoiDataModule(root, batch_size=batch_size, num_workers=0, fields=readers.FIELDS)
        data.setup("fit")
        data.load_state_dict({"epoch": 0, "position": int(share * num_samples)})
        assert len(next(iter(data.train_dataloader()))["key"]) == batch_size
        return time.process_time() - start

    first_batch(0.0)
    ratios = []
    for turn in range(2 * pairs):
        times = {share: first_batch(share) for share in ((0.0, 0.9), (0.9, 0.0))[turn % 2]}
        ratios.append(times[0.9] / times[0.0])
    return Figure(
        "time to the first batch, resumed at 90 % of an epoch, against a fresh start",
        statistics.median(ratios),
        "x",
        1.2,
    )


def memory_figures(shards: "Shards") -> list[Figure]:
    """Resident memory after each of three epochs of at least 64 batches, two threads decoding."""
    decode = readers.ours(shards, 2)
    sizes = []
    for _ in range(3):
        decode(max(64, len(shards) // readers.BATCH))
        sizes.append(_resident_mb())
    return [
        Figure("resident memory after the first epoch", sizes[0], "MB"),
        Figure("growth until after the third", sizes[2] - sizes[0], "MB", 8.0),
    ]


def index_figures(scratch: Path) -> list[Figure]:
    """An index of as many samples as HO3Pairs has, in a thousand a tar, of made-up offsets."""
    from hoi_lightning.data import index as index_file
    from hoi_lightning.data.order import Permutation
    from hoi_lightning.data.shard import IMAGE_MEMBERS

    rng = np.random.default_rng(0)
    number = np.arange(INDEX_SAMPLES)
    keys = np.array(
        [f"ZY2021080{i % 9999:04d}_H{i % 4}_C{i % 20}_N{i % 50:02d}_S{i % 300:03d}_s01_T1_f{i:06d}" for i in number],
        "S",
    )
    records = np.zeros(INDEX_SAMPLES, index_file.record_type(IMAGE_MEMBERS, keys.itemsize))
    records["shard"], records["key"], records["category"] = number // 1000, keys, number % 20
    records["block"] = (number % 1000 * 600)[:, None] + np.arange(len(IMAGE_MEMBERS)) * 90
    records["size"], records["layout"] = 20_000, rng.random((INDEX_SAMPLES, 5))
    state = [[f"train-{k:06d}.tar", 1 << 30, 0] for k in range(INDEX_SAMPLES // 1000)]
    place = scratch / ".train.index"
    index = index_file.Index(records, tuple(f"Category{k}" for k in range(20)), ())
    index_file.save(index, place, "made up", state)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        loaded = index_file.load(place, "made up", state, IMAGE_MEMBERS)
        times.append(time.perf_counter() - start)
    order = Permutation(INDEX_SAMPLES, 0, 0)
    start = time.process_time()
    for k in range(0, INDEX_SAMPLES, 10):
        order[k]
    position = (time.process_time() - start) / (INDEX_SAMPLES / 10)
    many = f"index of {INDEX_SAMPLES} samples"
    return [
        Figure(f"{many}: to open", statistics.median(times), "s", 0.5),
        Figure(f"{many}: size", place.stat().st_size / 1e6, "MB", 64.0),
        Figure(f"{many}: memory of a process's own", _private_mb(place, loaded.records), "MB", 1.0),
        Figure(f"{many}: to find a position's sample", position * 1e6, "µs", 10.0),
    ]


def _resident_mb() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _private_mb(place: Path, records: np.ndarray) -> float:
    """Memory of a mapped file that no other process shares or could share; NaN where the system does not tell."""
    records["layout"].sum()  # touched
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return float("nan")
    private, inside = 0, False
    for line in lines:
        if "-" in line.split(maxsplit=1)[0]:
            inside = line.endswith(str(place.resolve()))
        elif inside and line.startswith("Private_Dirty:"):
            private += int(line.split()[1])
    return private / 1e3
