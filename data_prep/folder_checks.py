"""What no tar shows by itself: nothing twice, splits apart, counts and ledger right, companions complete."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_LINES = 50
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Brief:
    """What the checks across shards need to know of a sample."""

    key: str
    sequence: str
    frame: int
    category: str
    instance: str
    keypoints: bool


@dataclass
class TarReport:
    """What a worker found in one tar.

    Attributes:
        entry: the manifest's.
        keys: of its samples, in order.
        briefs: of the samples whose record can be read; image shards only.
        faults: key, empty where the whole tar is meant, and words.
    """

    entry: dict[str, Any]
    keys: list[str] = field(default_factory=list)
    briefs: list[Brief] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


class Faults:
    """Prints the first `MAX_LINES` and counts the rest."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, place: str, text: str) -> None:
        """Report one fault; control characters of strangers do not reach the terminal."""
        from tqdm import tqdm

        self.count += 1
        if self.count <= MAX_LINES:
            line = f"{place}: {text}"
            tqdm.write("".join(char if char.isprintable() else "?" for char in line)[:1000])


class Across:
    """Takes the reports of all tars in, then compares them with each other and with the other files.

    Args:
        manifest: one that `manifest_faults` has passed.
        faults: where they are reported.
    """

    def __init__(self, manifest: dict[str, Any], faults: Faults) -> None:
        self.manifest, self.faults = manifest, faults
        self.shard_of: dict[str, str] = {}
        self.keys: dict[str, list[str]] = {}
        self.splits: dict[str, dict[str, str]] = defaultdict(dict)  # instance → split → an example
        self.counts: dict[str, Counter[str]] = {split: Counter() for split in _SPLITS}
        self.kept: dict[str, set[int]] = defaultdict(set)
        self.num_keypoints = self.num_briefs = 0

    def add(self, report: TarReport) -> None:
        """Take one tar's samples in, or compare a companion with the shard it belongs to."""
        name = report.entry["name"]
        owner = name.removeprefix("truth-").removeprefix("latents-")
        if owner != name:
            if report.keys and owner in self.keys and report.keys != self.keys[owner]:
                differing = sorted(set(report.keys) ^ set(self.keys[owner]))
                detail = f", e.g. {differing[0]}" if differing else ": another order"
                self.faults.add(name, f"its keys are not those of {owner}{detail}")
            return
        self.keys[name] = report.keys
        for key in report.keys:
            if key in self.shard_of:
                self.faults.add(f"{name} {key}", f"the key is in {self.shard_of[key]} too")
            self.shard_of[key] = name
        split = report.entry["split"]
        for brief in report.briefs:
            self.splits[f"{brief.category}/{brief.instance}"].setdefault(split, f"{name} {brief.key}")
            self.counts[split][brief.category] += 1
            self.kept[brief.sequence].add(brief.frame)
            self.num_keypoints += brief.keypoints
            self.num_briefs += 1

    def finish(self, folder: Path) -> None:
        """Compare all samples with each other, the manifest, `splits.json` and `dropped.jsonl`."""
        for instance, splits in sorted(self.splits.items()):
            if len(splits) > 1:
                self.faults.add(", ".join(splits.values()), f"{instance} is in {' and '.join(splits)}")
        self._check_splits(_read_json(folder / "splits.json"))
        listed = {entry["name"] for entry, _ in list_jobs(self.manifest)}
        for path in sorted(folder.glob("*.tar")):
            if path.name not in listed:
                self.faults.add(path.name, "the manifest does not list it")
        if self.num_briefs == sum(entry["count"] for entry in self.manifest["shards"]):
            self._check_counts()
        self._check_ledger(folder / "dropped.jsonl")

    def _check_splits(self, known: dict[str, Any] | str) -> None:
        if isinstance(known, str):
            self.faults.add("splits.json", known)
            return
        for instance, splits in sorted(self.splits.items()):
            for split, example in splits.items():
                if known.get(instance) != split:
                    self.faults.add(example, f"{instance} is in {split}, splits.json says {known.get(instance)}")
        for instance in sorted(set(known) - set(self.splits)):
            self.faults.add("splits.json", f"{instance} has no sample")

    def _check_counts(self) -> None:
        manifest = self.manifest
        for split in _SPLITS:
            stated = manifest["counts"].get(split, {})
            for category in sorted(set(stated) | set(self.counts[split])):
                counted = self.counts[split][category]
                if stated.get(category, 0) != counted:
                    text = f"counts {stated.get(category, 0)} of {category} in {split}, the shards hold {counted}"
                    self.faults.add("manifest.json", text)
        for name, stated, counted in (
            ("frames.kept", manifest["frames"]["kept"], self.num_briefs),
            ("keypoints.valid", manifest["keypoints"].get("valid"), self.num_keypoints),
            ("keypoints in all", sum(manifest["keypoints"].values()), self.num_briefs),
        ):
            if stated != counted:
                self.faults.add("manifest.json", f"{name} is {stated}, the shards hold {counted}")

    def _check_ledger(self, path: Path) -> None:
        """Each frame is kept or dropped, never both, never twice; reasons are counted as they are listed."""
        if not path.is_file():
            self.faults.add(path.name, "the file is missing")
            return
        reasons: Counter[str] = Counter()
        dropped: dict[str, set[int | None]] = defaultdict(set)
        num_frames = 0
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                place = f"{path.name} line {number}"
                try:
                    drop = json.loads(line)
                    sequence, frame, reason = str(drop["sequence"]), drop["frame"], str(drop["reason"])
                    if frame is not None and not isinstance(frame, int):
                        raise ValueError("its frame is no number")
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    self.faults.add(place, f"not a drop ({error!r})")
                    continue
                reasons[reason] += 1
                num_frames += frame is not None
                if frame in dropped[sequence]:
                    self.faults.add(place, f"{sequence} frame {frame} is listed twice")
                dropped[sequence].add(frame)
                if frame in self.kept.get(sequence, ()):
                    self.faults.add(place, f"{sequence} frame {frame} is in a shard all the same")
        for reason in sorted(set(reasons) | set(self.manifest["dropped"])):
            stated = self.manifest["dropped"].get(reason, 0)
            if stated != reasons[reason]:
                self.faults.add(path.name, f"{reasons[reason]} drops of {reason}, the manifest says {stated}")
        seen, kept = self.manifest["frames"]["seen"], self.manifest["frames"]["kept"]
        if seen != kept + num_frames:
            self.faults.add(path.name, f"{num_frames} frames and {kept} samples, but {seen} frames were seen")


def list_jobs(manifest: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """All tars that the manifest lists, image shards first."""
    latents = manifest.get("latents", {}).get("shards", [])
    kinds = {"samples": manifest["shards"], "truth": manifest.get("truth", []), "latents": latents}
    return [(entry, kind) for kind, entries in kinds.items() for entry in entries]


def manifest_faults(manifest: dict[str, Any]) -> Iterator[str]:
    """What would make the other checks meaningless."""
    from hoi_lightning.data.sample import MAX_SIDE, SCHEMA

    if manifest.get("schema") != SCHEMA:
        yield f"schema {manifest.get('schema')!r}, this version reads {SCHEMA}"
    if not isinstance(manifest.get("size"), int) or not 0 < manifest["size"] <= MAX_SIDE:
        yield f"size {manifest.get('size')!r} is no side in pixels"
    for name, keys in (("dropped", ()), ("frames", ("seen", "kept")), ("keypoints", ("valid",))):
        if not _is_tally(manifest.get(name), keys):
            yield f"{name} missing or malformed"
    if not _is_dict(manifest.get("counts")) or not all(map(_is_tally, manifest["counts"].values())):
        yield "counts missing or malformed"
    try:
        jobs = list_jobs(manifest)
    except (AttributeError, TypeError):
        yield "truth or latents malformed"
        return
    prefixes = {"samples": "", "truth": "truth-", "latents": "latents-"}
    hashes = {entry.get("name"): entry.get("sha256") for entry, kind in jobs if kind == "samples" and _is_dict(entry)}
    names: set[str] = set()
    for entry, kind in jobs:
        if not _is_dict(entry) or not all(isinstance(entry.get(key), int) for key in ("count", "bytes")):
            yield f"malformed entry {str(entry)[:200]}"
            continue
        # a name that is matched leads nowhere outside the folder
        match = re.fullmatch(rf"{prefixes[kind]}(train|val|test)-\d{{6}}\.tar", str(entry.get("name")))
        if not match or entry.get("split") != match[1] or entry["name"] in names:
            yield f"name {entry.get('name')!r} of split {entry.get('split')!r} is not that of a {kind} tar, or is twice"
        names.add(str(entry.get("name")))
        if kind == "latents" and entry.get("of") != hashes.get(str(entry.get("name")).removeprefix("latents-")):
            yield f"{entry.get('name')} was made from another {str(entry.get('name')).removeprefix('latents-')}"
    if manifest.get("truth"):
        for entry in manifest["shards"]:
            if entry.get("split") != "train" and f"truth-{entry.get('name')}" not in names:
                yield f"{entry.get('name')} has no truth beside it"


def _is_tally(value: Any, keys: tuple[str, ...] = ()) -> bool:
    return _is_dict(value) and set(keys) <= set(value) and all(isinstance(count, int) for count in value.values())


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _read_json(path: Path) -> dict[str, Any] | str:
    """A JSON object, or why there is none."""
    if not path.is_file():
        return "the file is missing"
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"cannot be read ({error})"
    return record if isinstance(record, dict) else "is no object"
