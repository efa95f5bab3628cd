"""`python -m data_prep check`: what of a data set is there, and what building its pairs will give and cost."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from data_prep.remove_hand import RemovalRequest, Removed
    from data_prep.sources import Clip, Drop, Survey
    from hoi_lightning.data.sample import HOISample

FATAL = frozenset({"no-video", "no-mask-folder", "no-actions"})  # of these each costs the whole clip
SIZES = (512, 256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set, unpacked or zipped")
    parser.add_argument("--dataset", choices=["hoi4d", "egohos"], default="hoi4d", help="what lies in ROOT")
    parser.add_argument("--out", type=Path, default=Path("runs/check"), help="folder for check.json and check.html")
    parser.add_argument("--sample", type=int, default=3, metavar="N", help="clips to try the pairing on; 0 for none")


def run(args: argparse.Namespace) -> int:
    """Look at the data set, try the pairing on a few clips, write check.json and check.html.

    Returns:
        0, or 1 where nothing usable is found.

    Raises:
        InputError: no such folder, or OUT cannot be written.
    """
    from tqdm import tqdm

    from data_prep.check_page import render
    from data_prep.sources import open_source

    if not args.root.is_dir():
        raise InputError(f"{args.root}: no such folder; give the folder of the data set")
    if args.sample < 0:
        raise InputError(f"--sample {args.sample}: give a number of clips, 0 or more")
    source = open_source(args.root, args.dataset)
    report: dict[str, Any] = {"root": str(args.root), "dataset": args.dataset, "command": shlex.join(sys.argv)}
    report |= {"formats": source.formats(), "versions": _versions(), "problem": None}
    try:
        clips, left_out = source.find()
    except InputError as error:
        clips, left_out, report["problem"] = [], [], str(error)
    bar = tqdm(clips, unit="clip", desc="looking", disable=not clips)
    surveyed = [(clip, clip.survey()) for clip in bar]
    usable = [(clip, survey) for clip, survey in surveyed if _is_usable(survey)]
    chosen = _spread([clip for clip, _ in usable], args.sample)
    trials = [_try(clip) for clip in tqdm(chosen, unit="clip", desc="trying", disable=not chosen)]
    report |= _coverage(surveyed, left_out) | {"sample": [asdict(trial) for trial in trials]}
    report["estimate"] = _estimate([survey for _, survey in usable], trials)
    if report["problem"] is None and not usable:
        report["problem"] = f"{args.root}: no clip has its pictures, masks and events; see the missing parts"
    elif trials and not any(trial.pairs for trial in trials):
        report["problem"] = f"{args.root}: none of {len(trials)} clips tried gave a pair; see the reasons of the sample"
    _write(args.out, {"check.json": json.dumps(report, indent=1) + "\n", "check.html": render(report)})
    _print(report, args.out)
    return 1 if report["problem"] else 0


@dataclass(frozen=True)
class Trial:
    """The pairing tried on one clip.

    Attributes:
        clip: its name.
        frames: its number of frames.
        contact: frames that could be pairs.
        pairs: pairs that they gave.
        seconds: CPU time for masks, decoding, cropping, layouts and encoding, without removing hands.
        bytes: mean size of a pair by side in pixels, `obj.jpg` being taken for as large as `hoi.jpg`.
        sdedit_bytes: what an SDEdit copy would add to it.
        dropped: contact frames given up, by reason.
    """

    clip: str
    frames: int
    contact: int
    pairs: int
    seconds: float
    bytes: dict[int, float]
    sdedit_bytes: dict[int, float]
    dropped: dict[str, int]


def _try(clip: "Clip") -> Trial:
    import cv2
    import torch

    from data_prep.encode import encode
    from data_prep.pairing import PairSettings, make_pairs, plan_clip
    from data_prep.sources import Drop, Fault

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    started, spent = time.process_time(), 0.0
    sizes: dict[int, list[tuple[int, int]]] = {size: [] for size in SIZES}
    dropped: Counter[str] = Counter()
    frames = contact = 0
    try:
        plan = plan_clip(clip, PairSettings(SIZES[0]))
        frames = plan.num_seen
        ruled_out = sum(drop.reason in ("no-contact-event", "unknown-event") for drop in plan.drops)
        contact = frames - ruled_out
        dropped.update(drop.reason for drop in plan.drops if drop.reason not in ("no-contact-event", "unknown-event"))
        for outcome in make_pairs(clip, plan.pairs, PairSettings(SIZES[0]), _leave):
            if isinstance(outcome, Drop):
                dropped[outcome.reason] += 1
                continue
            sizes[SIZES[0]].append(_measure(encode(outcome[0])))
            paused = time.process_time()
            if len(sizes[SIZES[0]]) % 8 == 1:  # enough to know the mean size of the smaller ones
                sizes[SIZES[1]].append(_measure(encode(_shrunk(outcome[0], SIZES[1]))))
            spent += time.process_time() - paused
    except Fault as fault:
        dropped[fault.reason] += 1
    seconds = time.process_time() - started - spent
    means = {size: [_mean(values) for values in zip(*found, strict=True)] for size, found in sizes.items() if found}
    return Trial(
        clip=clip.name,
        frames=frames,
        contact=contact,
        pairs=len(sizes[SIZES[0]]),
        seconds=round(seconds, 2),
        bytes={size: total for size, (total, _) in means.items()},
        sdedit_bytes={size: picture for size, (_, picture) in means.items()},
        dropped=dict(dropped),
    )


def _leave(requests: Iterable["RemovalRequest"]) -> Iterator["Removed"]:
    """A remover that leaves hands where they are."""
    from data_prep.remove_hand import Removed

    for request in requests:
        yield Removed(request.hoi, request.hole, "none")


def _shrunk(sample: "HOISample", size: int) -> "HOISample":
    import cv2
    import numpy as np

    def shrink(picture: np.ndarray | None) -> np.ndarray:
        assert picture is not None  # pairing gives all four
        kept = picture.view(np.uint8) if picture.ndim == 2 else picture
        shrunk = cv2.resize(kept, (size, size), interpolation=cv2.INTER_AREA)
        return shrunk.view(bool) if picture.ndim == 2 else shrunk

    hand, touched = shrink(sample.hand), shrink(sample.object)
    return replace(sample, hoi=shrink(sample.hoi), obj=shrink(sample.obj), hand=hand, object=touched)


def _measure(record: dict[str, Any]) -> tuple[int, int]:
    """Bytes in a tar of a sample's members, and of a picture."""

    def in_tar(size: int) -> int:
        return 512 + -(-size // 512) * 512

    members = [in_tar(len(value)) for name, value in record.items() if name != "__key__"]
    return sum(members), in_tar(len(record["hoi.jpg"]))


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 1)


def _is_usable(survey: "Survey") -> bool:
    return bool(survey.contact and survey.masks) and not FATAL.intersection(survey.missing)


def _spread(clips: Sequence["Clip"], count: int) -> list["Clip"]:
    """Clips from all over the categories."""
    ordered = sorted(clips, key=lambda clip: (clip.category, clip.name))
    count = min(count, len(ordered))
    return [ordered[(2 * index + 1) * len(ordered) // (2 * count)] for index in range(count)]


def _coverage(surveyed: Sequence[tuple["Clip", "Survey"]], left_out: Sequence["Drop"]) -> dict[str, Any]:
    """Count what is there by category and group, and list what is missing."""
    cells: dict[tuple[str, str], list[Survey]] = {}
    for clip, survey in surveyed:
        cells.setdefault((clip.category, survey.group), []).append(survey)
    rows = [
        {
            "category": category,
            "group": group,
            "clips": len(found),
            "usable": sum(map(_is_usable, found)),
            "frames": sum(survey.frames for survey in found),
            "masks": sum(survey.masks for survey in found),
            "contact": sum(survey.contact for survey in found if _is_usable(survey)),
            "poses": sum(survey.poses for survey in found),
            "missing": dict(sorted(Counter(reason for survey in found for reason in survey.missing).items())),
        }
        for (category, group), found in sorted(cells.items())
    ]
    return {
        "clips": len(surveyed),
        "usable": sum(_is_usable(survey) for _, survey in surveyed),
        "left_out": dict(sorted(Counter(drop.reason for drop in left_out).items())),
        "coverage": rows,
        "missing": [
            {"clip": clip.name, "missing": list(survey.missing)} for clip, survey in surveyed if survey.missing
        ],
    }


def _estimate(usable: Sequence["Survey"], trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Scale what the trials gave up to all usable clips."""
    worked = [trial for trial in trials if trial.pairs]
    if not worked:
        return None
    keep = sum(trial.pairs for trial in trials) / sum(trial.contact for trial in trials)
    rates = [trial.pairs / trial.contact for trial in worked]
    contact, frames = sum(survey.contact for survey in usable), sum(survey.frames for survey in usable)
    pairs = round(contact * keep)
    seconds = frames * sum(trial.seconds for trial in worked) / sum(trial.frames for trial in worked)
    gigabytes = {size: round(pairs * _weighted(worked, "bytes", size) / 1e9, 6) for size in SIZES}
    more = {size: round(pairs * _weighted(worked, "sdedit_bytes", size) / 1e9, 6) for size in SIZES}
    return {
        "contact_frames": contact,
        "keep_rate": round(keep, 3),
        "keep_rate_range": [round(min(rates), 3), round(max(rates), 3)],
        "pairs": pairs,
        "cores": os.cpu_count(),
        "core_hours": round(seconds / 3600, 5),
        "hours": round(seconds / 3600 / (os.cpu_count() or 1), 5),
        "gigabytes": gigabytes,
        "sdedit_gigabytes": more,
    }


def _weighted(trials: Sequence[Trial], name: str, size: int) -> float:
    return sum(getattr(t, name)[size] * t.pairs for t in trials) / sum(t.pairs for t in trials)


def _versions() -> dict[str, str]:
    packages = ("numpy", "av", "opencv-python-headless", "pillow", "torch", "webdataset")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _write(out: Path, files: dict[str, str]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None


def _print(report: dict[str, Any], out: Path) -> None:
    print("  ".join(f"{name}: {shape};" for name, shape in report["formats"].items()).rstrip(";"))
    by_category: dict[str, Counter[str]] = {}
    for row in report["coverage"]:
        counts = by_category.setdefault(row["category"], Counter())
        counts.update({name: row[name] for name in ("clips", "usable", "frames", "contact", "poses")})
    if by_category:
        print(f"{'category':<18}{'clips':>7}{'usable':>8}{'frames':>9}{'contact':>9}{'poses':>9}")
    for category, counts in by_category.items():
        print(
            f"{category:<18}{counts['clips']:>7}{counts['usable']:>8}{counts['frames']:>9}{counts['contact']:>9}"
            f"{counts['poses']:>9}"
        )
    missing = Counter(reason for entry in report["missing"] for reason in entry["missing"])
    for title, found in (("missing, clips", missing), ("left out, clips", report["left_out"])):
        if found:
            print(f"{title}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(found.items())))
    estimate = report["estimate"]
    if estimate:
        low, high = estimate["keep_rate_range"]
        sizes = ", ".join(f"{estimate['gigabytes'][size]:.2f} GB at {size} px" for size in SIZES)
        print(
            f"about {estimate['pairs']} pairs: {estimate['contact_frames']} contact frames, of which "
            f"{estimate['keep_rate']:.0%} became pairs in {len(report['sample'])} clips tried ({low:.0%} to {high:.0%})"
        )
        print(f"about {sizes}; {estimate['core_hours']:.2f} core hours without hand removal, {estimate['cores']} cores")
    if report["problem"]:
        print(f"nothing to build: {report['problem']}")
    print(f"report: {out / 'check.html'}")
