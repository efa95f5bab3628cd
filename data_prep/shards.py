"""Shards: one part per clip while building, then one global shuffle into WebDataset tars, and the manifest last.

The bytes depend on the input and the settings alone, not on the number of workers, nor on how often the build was
interrupted: a part is a finished clip, appears under its name at once, and is never written twice.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import webdataset as wds

from data_prep import hoi4d
from data_prep.hoi4d import Fault
from data_prep.pairing import Drop, KeypointState, PairSettings, make_pairs, plan_clip
from data_prep.remove_hand import HandRemover
from hoi_lightning.data.sample import SCHEMA, encode

SPLITS = ("train", "val", "test")
SPLIT_RULE = "by (category, instance), seeded per category"

_LEDGER = "ledger"


@dataclass(frozen=True)
class Span:
    """Where a sample's members lie in a part: a byte range that is a tar without its end."""

    key: str
    part: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Part:
    """A finished clip.

    Attributes:
        instance: `Category/instance`.
        spans: its samples.
        drops: its ledger, `Drop`s as dictionaries.
        num_seen: frames looked at.
        keypoints: number of samples by state of their keypoints.
    """

    instance: str
    spans: list[Span]
    drops: list[dict[str, Any]]
    num_seen: int
    keypoints: dict[str, int]


def part_path(folder: Path, sequence: hoi4d.Sequence) -> Path:
    """Where a clip's part lies."""
    return folder / f"{sequence.name.replace('/', '_')}.tar"


def write_part(sequence: hoi4d.Sequence, settings: PairSettings, remover: HandRemover, path: Path) -> None:
    """Make a clip's pairs and write them, with its ledger, into one tar that appears when it is complete."""
    drops: list[Drop] = []
    keypoints: Counter[KeypointState] = Counter()
    num_seen = 0
    with Replacing(path) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
        try:
            clip = plan_clip(sequence, settings)
            num_seen, drops = clip.num_seen, clip.drops
            for outcome in make_pairs(sequence, clip.pairs, settings, remover):
                if isinstance(outcome, Drop):
                    drops.append(outcome)
                    continue
                sample, state = outcome
                keypoints[state] += 1
                tar.write(encode(sample))
        except Fault as fault:
            drops = [Drop.of(sequence, None, fault)]
        ledger = {
            "instance": f"{sequence.category}/{sequence.instance}",
            "drops": [asdict(drop) for drop in sorted(drops, key=lambda drop: drop.frame or 0)],
            "num_seen": num_seen,
            "keypoints": keypoints,
        }
        tar.write({"__key__": _LEDGER, "json": json.dumps(ledger).encode()})


def read_part(path: Path) -> Part:
    """Index a part without reading its pictures."""
    spans: list[Span] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key = member.name.partition(".")[0]
            if key == _LEDGER:
                file = tar.extractfile(member)
                assert file is not None
                return Part(spans=spans, **json.load(file))
            stop = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if spans and spans[-1].key == key:
                spans[-1] = Span(key, path, spans[-1].start, stop)
            else:
                spans.append(Span(key, path, member.offset, stop))
    raise ValueError(f"{path} has no ledger")


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
    out: Path, parts: Sequence[Part], splits: dict[str, str], seed: int, samples_per_shard: int
) -> list[dict[str, Any]]:
    """Shuffle all samples of each split over its shards.

    Args:
        out: folder of the shards.
        parts: the finished clips.
        splits: split of each `Category/instance`.
        seed: of the shuffle.
        samples_per_shard: at most so many go into one; shards of a split differ by one sample at most.

    Returns:
        The manifest's list: name, split, count, bytes and sha256 of each shard.
    """
    shards: list[dict[str, Any]] = []
    for split in SPLITS:
        spans = [span for part in parts if splits.get(part.instance) == split for span in part.spans]
        spans.sort(key=lambda span: span.key)
        order = _generator(seed, split).permutation(len(spans))
        num_shards = -(-len(spans) // samples_per_shard)
        for number, chosen in enumerate(np.array_split(order, num_shards) if num_shards else []):
            path = out / f"{split}-{number:06d}.tar"
            with Replacing(path) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
                for index in chosen:
                    tar.write(_read_span(spans[index]))
            shards.append(shard_record(path, split, len(chosen)))
    return shards


def shard_record(path: Path, split: str, count: int) -> dict[str, Any]:
    """What the manifest says of a finished tar with `count` samples."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "split": split, "count": count, "bytes": path.stat().st_size, "sha256": digest}


def manifest(
    parts: Sequence[Part], splits: dict[str, str], shards: list[dict[str, Any]], drops: list[dict[str, Any]]
) -> dict[str, Any]:
    """Count what is in the shards and what was given up; the caller adds settings and `run`."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for part in parts:
        if part.spans:
            counts[splits[part.instance]][part.instance.partition("/")[0]] += len(part.spans)
    return {
        "schema": SCHEMA,
        "split_rule": SPLIT_RULE,
        "shards": shards,
        "counts": {split: dict(sorted(counter.items())) for split, counter in counts.items()},
        "dropped": dict(sorted(Counter(drop["reason"] for drop in drops).items())),
        "frames": {
            "seen": sum(part.num_seen for part in parts),
            "kept": sum(len(part.spans) for part in parts),
        },
        "keypoints": {state: sum(part.keypoints.get(state, 0) for part in parts) for state in get_args(KeypointState)},
    }


def write_text(path: Path, text: str) -> None:
    """Write a file that appears when it is complete."""
    with Replacing(path) as file:
        file.write(text.encode())


class Replacing:
    """A file that takes its name when it is closed without an error; a broken-off one leaves nothing behind.

    Args:
        path: its name; what bears it now stays until then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> io.BufferedWriter:
        """Open the temporary file."""
        self.file = self.temporary.open("wb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Rename it, or remove it after an error."""
        self.file.close()
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _read_span(span: Span) -> dict[str, Any]:
    with span.part.open("rb") as file:
        file.seek(span.start)
        data = file.read(span.stop - span.start)
    record: dict[str, Any] = {"__key__": span.key}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            record[member.name.partition(".")[2]] = data[member.offset_data : member.offset_data + member.size]
    return record


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
