"""`python -m data_prep leak`: does the removed hand betray where it was?

A small network learns the layout's (x, y) from the pictures without hands of the training shards and is measured on the
test shards. Some of it can be told from the object alone: a cup is held by its handle. So the same network learns from
pictures that never had a hand (the mini world's truth, `--truth`), and the leak is the error there minus the error
here, sample by sample: above 0 where the removed picture betrays the hand. Errors are distances in units of the
picture's side; intervals are the bootstrap's 95 % over instances.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from hoi_lightning.data.sample import HOISample

DRAWS = 2000  # bootstrap replicates
TELEA = "telea"

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--shards", type=Path, required=True, help="folder that `build` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for leak.json, leak.md and leak.png")
    parser.add_argument(
        "--truth", type=Path, metavar="ROOT", help="the mini world that the shards are from, for pictures without hands"
    )
    parser.add_argument(
        "--remover-override",
        choices=[TELEA],
        help="also remove the hands of the shards' HOI pictures anew, by Telea's inpainting without plates",
    )
    parser.add_argument("--steps", type=int, default=600, help="training steps of each probe")
    parser.add_argument("--max-samples", type=int, default=20_000, metavar="N", help="of each split, at most so many")
    parser.add_argument("--seed", type=int, default=0, help="of the probes and the bootstrap")


@dataclass(frozen=True)
class Thumbnails:
    """A split's pictures at the probe's size.

    Attributes:
        pictures: uint8 (N, 64, 64, 3) by kind: `removed`, and `sdedit`, `clean`, `telea` where there are some.
        centres: (N, 2), the layouts' x and y.
        instances: `Category/instance` of each sample.
        removers: number of samples by remover.
    """

    pictures: dict[str, np.ndarray]
    centres: np.ndarray
    instances: list[str]
    removers: dict[str, int]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its 95 % interval over instances."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def run(args: argparse.Namespace) -> None:
    """Train a probe for each kind of picture and write what they tell.

    Raises:
        InputError: no shards, no truth where the arguments say, or too few of either split.
    """
    from data_prep.output import write_text

    if args.steps < 1 or args.max_samples < 1:
        raise InputError("--steps and --max-samples: give numbers from 1")
    if args.truth is not None and not (args.truth / "truth").is_dir():
        raise InputError(f"--truth {args.truth}: has no truth/; give the folder that `python -m data_prep demo` drew")
    manifest = _manifest(args.shards)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {args.out}: cannot be made ({error.strerror}); choose another folder") from None
    train, test = (_thumbnails(args, manifest, split) for split in SPLITS)
    errors = measure(train, test, args.steps, args.seed)
    result = summarise(errors, test, args.seed) | {
        "unit": "distance of (x, y) over the picture's side; leak = error(clean) - error, above 0 = betrays the hand",
        "num_train": len(train.centres),
        "num_test": len(test.centres),
        "num_test_instances": len(set(test.instances)),
        "removers": test.removers,
        "steps": args.steps,
        "seed": args.seed,
        "bootstrap": f"{DRAWS} draws of instances, 95 %",
        "manifest_sha256": hashlib.sha256((args.shards / "manifest.json").read_bytes()).hexdigest(),
    }
    write_text(args.out / "leak.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_text(args.out / "leak.md", table(result))
    plot(result, args.out / "leak.png")
    print(table(result), end="")
    print(f"{args.out / 'leak.json'}, leak.md, leak.png")


def measure(train: Thumbnails, test: Thumbnails, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Test error (N,) of each kind's probe, and of the best constant as `constant`."""
    from tqdm import tqdm

    from data_prep.probe import best_constant, probe_errors, train_probe

    constant = np.linalg.norm(test.centres - best_constant(train.centres), axis=1) / 2
    errors = {"constant": constant}
    kinds = [kind for kind in train.pictures if kind in test.pictures]
    with tqdm(total=len(kinds) * steps, unit="step", desc="probes") as bar:
        for kind in kinds:
            bar.set_postfix_str(kind)
            probe = train_probe(train.pictures[kind], train.centres, steps=steps, seed=seed, on_step=bar.update)
            errors[kind] = probe_errors(probe, test.pictures[kind], test.centres)
    return errors


def summarise(errors: dict[str, np.ndarray], test: Thumbnails, seed: int) -> dict[str, Any]:
    """Errors by kind, and leaks against the clean pictures where there are some: value, low, high."""
    kinds = {kind: vars(bootstrap(values, test.instances, seed)) for kind, values in errors.items()}
    leaks = {
        kind: vars(bootstrap(errors["clean"] - values, test.instances, seed))
        for kind, values in errors.items()
        if "clean" in errors and kind not in ("clean", "constant")
    }
    return {"errors": kinds, "leaks": leaks}


def bootstrap(values: np.ndarray, instances: list[str], seed: int) -> Estimate:
    """Mean of values (N,) with an interval from drawing whole instances anew."""
    _, group = np.unique(instances, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    picks = np.random.default_rng(seed).integers(len(counts), size=(DRAWS, len(counts)))
    low, high = np.quantile(sums[picks].sum(1) / counts[picks].sum(1), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown page."""
    lines = [
        "# Does the removed picture betray the hand?",
        "",
        f"Error of a probe that predicts the layout's (x, y) from the picture without a hand, in units of the side. "
        f"{result['num_train']} training samples, {result['num_test']} test samples of {result['num_test_instances']} "
        f"instances, {result['steps']} steps, seed {result['seed']}; 95 % intervals over instances. "
        f"Removers: {', '.join(f'{name} {count}' for name, count in sorted(result['removers'].items()))}.",
        "",
        "| picture | error | leak = error(clean) - error |",
        "|---|---:|---:|",
    ]
    for kind, error in result["errors"].items():
        leak = Estimate(**result["leaks"][kind]) if kind in result["leaks"] else ""
        lines.append(f"| {kind} | {Estimate(**error)} | {leak} |")
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Errors with their intervals, one row per kind of picture."""
    from matplotlib.figure import Figure

    from data_prep.output import Replacing

    kinds = list(result["errors"])
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(kinds)), dpi=120, layout="constrained")
    axes = figure.subplots()
    for row, kind in enumerate(kinds):
        error = Estimate(**result["errors"][kind])
        leak = result["leaks"].get(kind)
        colour = "#7f8c8d" if leak is None else "#c0392b" if leak["low"] > 0 else "#1f6f8b"
        spread = [[error.value - error.low], [error.high - error.value]]
        axes.errorbar(error.value, row, xerr=spread, fmt="o", color=colour, capsize=4)
        if leak is not None:
            axes.annotate(
                f"leak {Estimate(**leak)}", (error.value, row), (0, 7), textcoords="offset points", fontsize=8
            )
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.7)
    axes.set_xlim(left=0)
    axes.set_xlabel("error of (x, y) in units of the picture's side (bar: 95 % over instances; red: leaks)", fontsize=9)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with Replacing(path) as file:
        figure.savefig(file, format="png")


def _manifest(shards: Path) -> dict[str, Any]:
    from data_prep.read_shards import read_manifest

    manifest = read_manifest(shards, "--shards")
    found = {shard["split"] for shard in manifest["shards"]}
    for split in SPLITS:
        if split not in found:
            raise InputError(f"--shards {shards}: has no {split} shard; build with more instances or other --splits")
    return manifest


def _thumbnails(args: argparse.Namespace, manifest: dict[str, Any], split: Split) -> Thumbnails:
    """Read a split; samples are shuffled over its shards, so the first ones are as good as any."""
    import cv2
    from tqdm import tqdm

    from data_prep.probe import SIDE

    names = [shard["name"] for shard in manifest["shards"] if shard["split"] == split]
    total = min(sum(shard["count"] for shard in manifest["shards"] if shard["split"] == split), args.max_samples)
    pictures: dict[str, list[np.ndarray]] = {}
    centres, instances, removers = [], [], Counter[str]()
    stream = _samples([args.shards / name for name in names])
    with tqdm(total=total, unit="sample", desc=f"{split} pictures") as bar:
        for sample, _ in zip(stream, range(total), strict=False):
            for kind, picture in _kinds(sample, args.truth, args.remover_override):
                small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
                pictures.setdefault(kind, []).append(small)
            centres.append((sample.info.layout.x, sample.info.layout.y))
            instances.append(f"{sample.info.category}/{sample.info.instance}")
            removers[sample.info.remover] += 1
            bar.update()
    # A kind that only some samples have would be measured on another set.
    complete = {kind: np.stack(stack) for kind, stack in pictures.items() if len(stack) == len(centres)}
    return Thumbnails(complete, np.array(centres), instances, dict(removers))


def _kinds(sample: "HOISample", truth: Path | None, override: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """The sample's pictures without a hand, each uint8 (S, S, 3)."""
    from data_prep.remove_hand import OpenCVRemover, RemovalRequest, hole_around
    from data_prep.truth import clean_picture

    assert sample.obj is not None
    assert sample.hoi is not None
    assert sample.hand is not None
    assert sample.object is not None
    if truth is not None:
        yield "clean", clean_picture(truth / "truth", sample.info, len(sample.obj))
    yield "removed", sample.obj
    if sample.sdedit is not None:
        yield "sdedit", sample.sdedit
    if override == TELEA:
        hole = hole_around(sample.hand, round(sample.info.crop[2] - sample.info.crop[0]))
        request = RemovalRequest(sample.info.key, sample.hoi, sample.hand, hole, sample.object)
        (removed,) = OpenCVRemover()([request])
        yield TELEA, removed.obj


def _samples(paths: list[Path]) -> "Iterator[HOISample]":
    from data_prep.read_shards import iter_records
    from hoi_lightning.data.sample import MEMBERS, decode

    for path in paths:
        for record in iter_records(path, [*MEMBERS.values(), "json"]):
            yield decode(record.read_all())
