"""Shards: one global shuffle of all parts' samples into WebDataset tars, and the manifest last.

The bytes depend on the input and the settings alone, not on the number of workers, nor on how often the build was
interrupted: a part is a finished clip, appears under its name at once, and is never written twice.
"""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from data_prep.output import Replacing
from data_prep.pairing import KeypointState
from data_prep.parts import Part
from hoi_lightning.data.sample import SCHEMA

SPLITS = ("train", "val", "test")
SPLIT_RULE = "by (category, instance), seeded per category"


def assign_splits(instances: Iterable[str], fractions: tuple[float, float], seed: int) -> dict[str, str]:
    """Give each object instance to train, val or test.

    Category by category, so that an object is in one split only and every category with three instances or more is in
    all of them.

    Args:
        instances: `Category/instance` names.
        fractions: shares of val and test; a share of 0 leaves its split empty, 1 together the training split.
        seed: of the draw.
    """
    by_category: dict[str, list[str]] = {}
    for name in sorted(set(instances)):
        by_category.setdefault(name.partition("/")[0], []).append(name)
    splits: dict[str, str] = {}
    for category, names in by_category.items():
        order = [names[i] for i in _generator(seed, category).permutation(len(names))]
        num_val, num_test = _shares(fractions, len(names))
        for index, name in enumerate(order):
            splits[name] = "val" if index < num_val else "test" if index < num_val + num_test else "train"
    return dict(sorted(splits.items()))


def write_shards(
    out: Path,
    parts: Sequence[Part],
    splits: dict[str, str],
    seed: int,
    samples_per_shard: int,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Shuffle all samples of each split over its shards.

    Args:
        out: folder of the shards.
        parts: the finished clips.
        splits: split of each `Category/instance`.
        seed: of the shuffle.
        samples_per_shard: at most so many go into one; shards of a split differ by one sample at most.
        progress: told the number of samples of each finished shard.

    Returns:
        The manifest's list: name, split, count, bytes and sha256 of each shard.
    """
    # The order before the shuffle is that of the keys, which are a clip's name, `_f` and the frame.
    parts = sorted(parts, key=lambda part: f"{part.path.stem}_f")
    shards: list[dict[str, Any]] = []
    for split in SPLITS:
        chosen = [(number, part) for number, part in enumerate(parts) if splits.get(part.instance) == split]
        rows = [np.c_[np.full(len(part.samples), number), part.samples[:, 1:]] for number, part in chosen]
        table = np.concatenate([np.empty((0, 3), np.int64), *rows])  # part, first byte, byte after the last
        table = table[_generator(seed, split).permutation(len(table))]
        num_shards = -(-len(table) // samples_per_shard)
        for number, rows_here in enumerate(np.array_split(table, num_shards) if num_shards else []):
            path = out / f"{split}-{number:06d}.tar"
            digest, size = join_tars(
                path, [(parts[part].path, start, stop) for part, start, stop in rows_here.tolist()]
            )
            shards.append({"name": path.name, "split": split, "count": len(rows_here), "bytes": size, "sha256": digest})
            if progress is not None:
                progress(len(rows_here))
    return shards


def join_tars(path: Path, spans: Sequence[tuple[Path, int, int]]) -> tuple[str, int]:
    """Join byte ranges of tars into one.

    Args:
        path: the new tar.
        spans: tar, first byte and the byte after the last of each sample, in order.

    Returns:
        Its sha256 and size.
    """
    digest, size = hashlib.sha256(), 0
    with Replacing(path) as file:
        for part, start, stop in spans:
            with part.open("rb", buffering=0) as source:
                source.seek(start)
                data = source.read(stop - start)
            if len(data) != stop - start:
                raise ValueError(f"{part} is shorter than its record says")
            file.write(data)
            digest.update(data)
            size += len(data)
        # A tar ends with two empty blocks, filled up to a whole record.
        end = bytes(-(-(size + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - size)
        file.write(end)
        digest.update(end)
    return digest.hexdigest(), size + len(end)


def shard_record(path: Path, split: str, count: int) -> dict[str, Any]:
    """What the manifest says of a finished tar with `count` samples."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "split": split, "count": count, "bytes": path.stat().st_size, "sha256": digest}


def manifest(
    parts: Sequence[Part], splits: dict[str, str], shards: list[dict[str, Any]], dropped: Counter[str]
) -> dict[str, Any]:
    """Count what is in the shards and what was given up; the caller adds settings and `run`."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for part in parts:
        if len(part.samples):
            counts[splits[part.instance]][part.instance.partition("/")[0]] += len(part.samples)
    return {
        "schema": SCHEMA,
        "split_rule": SPLIT_RULE,
        "shards": shards,
        "counts": {split: dict(sorted(counter.items())) for split, counter in counts.items()},
        "dropped": dict(sorted(dropped.items())),
        "frames": {
            "seen": sum(part.num_seen for part in parts),
            "kept": sum(len(part.samples) for part in parts),
        },
        "keypoints": {state: sum(part.keypoints[state] for part in parts) for state in get_args(KeypointState)},
    }


def _shares(fractions: tuple[float, float], total: int) -> tuple[int, int]:
    """Instances of a category for val and test: one at least where there are three, and one left to train on.

    Shares of 1 together leave none to train on.
    """
    if sum(fractions) == 1:
        num_val = round(fractions[0] * total)
        return num_val, total - num_val
    if total < 3:
        return 0, 0
    num_val, num_test = (max(1, round(fraction * total)) if fraction else 0 for fraction in fractions)
    num_val = min(num_val, total - 2)
    return num_val, min(num_test, total - 1 - num_val)


def _generator(seed: int, name: str) -> np.random.Generator:
    """Random generator of its own for each name, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
