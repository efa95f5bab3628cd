"""`python -m data_prep build`: from HOI4D to HO3Pairs WebDataset shards."""

import argparse
import hashlib
import json
import platform
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from data_prep.launch import RemoverChoice
    from data_prep.pairing import PairSettings
    from data_prep.parts import Part
    from data_prep.sources import Clip, Drop

PART_VERSION = 4  # raise it when the same clip and settings give other samples, or parts another form
DEFAULT_SDEDIT = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--hoi4d",
        type=Path,
        required=True,
        metavar="ROOT",
        help="folder of the data set: for HOI4D the one that holds HOI4D_release/, HOI4D_annotations/, the hand poses "
        "and release.txt, or their zips; `python -m data_prep demo` draws one",
    )
    parser.add_argument("--dataset", choices=["hoi4d", "egohos"], default="hoi4d", help="what lies in ROOT")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--size", type=int, default=512, help="side of the crops in pixels; 256 for the paper's scale")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the shuffle and the diffusion")
    parser.add_argument("--stride", type=int, default=1, help="look at every n-th frame")
    parser.add_argument("--min-hand-area", type=float, default=0.005, help="least share of the crop the hand covers")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="at most so many")
    parser.add_argument(
        "--splits",
        type=_fractions,
        default="0.1,0.1",
        metavar="VAL,TEST",
        help="shares of each category's instances for val and test; 0,1 makes all of it test",
    )
    removal = parser.add_argument_group("hand removal")
    removal.add_argument(
        "--remover",
        choices=["opencv", "diffusion"],
        default="opencv",
        help="what removes the hands: opencv is a preview on the CPU, diffusion needs a GPU",
    )
    removal.add_argument(
        "--remover-weights",
        metavar="ID_OR_FOLDER",
        help="inpainting pipeline of diffusers (default: stable-diffusion-v1-5/stable-diffusion-inpainting)",
    )
    removal.add_argument("--remover-batch-size", type=int, default=8, metavar="N", help="crops painted together")
    removal.add_argument("--device", default="auto", help="of the model: auto, cpu, cuda, cuda:1, …")
    removal.add_argument(
        "--sdedit",
        type=_level,
        metavar="LEVEL|none",
        help="noise level of the SDEdit copies as a share of the schedule "
        f"(default: {DEFAULT_SDEDIT} with diffusion, none with opencv)",
    )
    scale = parser.add_argument_group("scale")
    scale.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="processes of this machine, or the Ray cluster that RAY_ADDRESS names",
    )
    scale.add_argument("--workers", type=int, metavar="N", help="clips at a time (default: as the machines have cores)")
    scale.add_argument(
        "--shard-range",
        type=_range,
        metavar="I/N",
        help="only prepare the I-th of N shares of the clips, 1/N to N/N; a last call without it writes the shards",
    )


def run(args: argparse.Namespace) -> None:
    """Build the shards, or find them built.

    An interrupted build goes on where it was when it is started again with the same arguments.

    Raises:
        InputError: no clip at ROOT, OUT cannot be written or holds something else, somebody is building there, or no
            frame gave a pair.
    """
    _check(args)
    from data_prep import output, resume

    with output.named_errors(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        with resume.alone(args.out, args.shard_range):
            _build(args)


def _build(args: argparse.Namespace) -> None:
    started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    from tqdm import tqdm

    from data_prep import output, resume, shards
    from data_prep.launch import Job, make_parts
    from data_prep.pairing import PairSettings
    from data_prep.parts import is_finished, part_path
    from data_prep.sources import open_source
    from data_prep.truth import write_truth

    remover = _remover(args)
    clips, left_out = open_source(args.hoi4d, args.dataset).find()
    settings = _settings(args, remover, clips, left_out)
    if resume.is_built(args.out, settings):
        print(f"{args.out}: up to date")
        return
    pair_settings = PairSettings(args.size, args.stride, args.min_hand_area)
    folder = resume.open_parts(args.out, _part_settings(args, remover, pair_settings))
    job = Job(pair_settings, folder, remover)
    if args.shard_range:
        share, shares = args.shard_range
        clips = clips[share - 1 :: shares]
    else:
        resume.remove_leftovers(args.out)
    todo = [clip for clip in clips if not is_finished(part_path(folder, clip))]
    _progress(make_parts(args.engine, todo, job, args.workers), len(clips), len(todo))
    if args.shard_range:
        print(
            f"{args.out}: share {share}/{shares} is prepared, {len(clips)} clips; after the last, run `build` without"
        )
        print("--shard-range to write the shards")
        return

    parts, dropped = _gather(args.out, folder, clips, left_out)
    splits = shards.assign_splits((part.instance for part in parts if len(part.samples)), args.splits, args.seed)
    if not splits:
        raise InputError(f"--hoi4d {args.hoi4d}: no frame gave a pair; {args.out / 'dropped.jsonl'} says why of each")
    with tqdm(total=sum(len(part.samples) for part in parts), unit="sample", desc="shards") as bar:
        written = shards.write_shards(args.out, parts, splits, args.seed, args.samples_per_shard, bar.update)
    truth = write_truth(args.out, written, args.hoi4d, args.size)
    output.write_text(args.out / "splits.json", json.dumps(splits, indent=1) + "\n")
    manifest = shards.manifest(parts, splits, written, dropped) | settings | ({"truth": truth} if truth else {})
    manifest["run"] = {
        "command": shlex.join(sys.argv),
        "versions": _versions(),
        "started": started[1],
        "seconds": round(time.monotonic() - started[0], 1),
    }
    output.write_text(args.out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    _report(args.out, manifest)


def _check(args: argparse.Namespace) -> None:
    for name, low, high in (
        ("size", 64, 4096),
        ("workers", 1, 4096),
        ("stride", 1, 10**6),
        ("samples_per_shard", 1, 10**9),
        ("remover_batch_size", 1, 4096),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} {value}: give a number from {low} to {high}")
    if not 0 <= args.min_hand_area < 1:
        raise InputError(f"--min-hand-area {args.min_hand_area}: give a share of the crop, 0 to below 1")


def _remover(args: argparse.Namespace) -> "RemoverChoice":
    from data_prep.launch import RemoverChoice

    sdedit = args.sdedit
    if sdedit is None:
        sdedit = DEFAULT_SDEDIT if args.remover == "diffusion" else 0.0
    return RemoverChoice(
        args.remover, args.remover_weights, sdedit or None, args.remover_batch_size, args.device, args.seed
    )


def _settings(
    args: argparse.Namespace, remover: "RemoverChoice", clips: "Sequence[Clip]", left_out: "Sequence[Drop]"
) -> dict[str, Any]:
    """What the shards' bytes depend on; the input enters by its clips and the sizes of their pictures."""
    lines = [f"{clip.name} {clip.num_bytes}" for clip in clips] + sorted(drop.sequence for drop in left_out)
    return {
        "input": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "dataset": args.dataset,
        "size": args.size,
        "seed": args.seed,
        "stride": args.stride,
        "min_hand_area": args.min_hand_area,
        "splits": list(args.splits),
        "samples_per_shard": args.samples_per_shard,
        **remover.identity,
    }


def _part_settings(args: argparse.Namespace, remover: "RemoverChoice", settings: "PairSettings") -> dict[str, Any]:
    """What the parts' bytes depend on."""
    root = str(args.hoi4d.resolve())
    return {"root": root, "dataset": args.dataset, **remover.identity, **asdict(settings), "version": PART_VERSION}


def _progress(steps: Iterator[None], total: int, left: int) -> None:
    from tqdm import tqdm

    with tqdm(total=total, initial=total - left, unit="clip", desc="pairs", disable=not left) as bar:
        for _ in steps:
            bar.update()


def _gather(
    out: Path, folder: Path, clips: "Sequence[Clip]", left_out: "Sequence[Drop]"
) -> "tuple[list[Part], Counter[str]]":
    """Read the parts' records and write their drops down, clip by clip; returns the parts and the drops' counts."""
    from data_prep.output import Replacing
    from data_prep.parts import part_path, read_part

    parts = []
    dropped = Counter(drop.reason for drop in left_out)
    with Replacing(out / "dropped.jsonl") as file:
        file.write("".join(json.dumps(asdict(drop)) + "\n" for drop in left_out).encode())
        for clip in clips:
            part, drops = read_part(part_path(folder, clip))
            parts.append(part)
            dropped.update(part.dropped)
            file.write("".join(json.dumps(drop) + "\n" for drop in drops).encode())
    return parts, dropped


def _fractions(text: str) -> tuple[float, float]:
    values = tuple(_number(value) for value in text.split(","))
    if len(values) != 2 or not (min(values) >= 0 and sum(values) <= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: give two shares of at most 1 together, e.g. 0.1,0.1")
    return values[0], values[1]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _level(text: str) -> float:
    value = 0.0 if text == "none" else _number(text)
    if not 0 <= value <= 1 or (value == 0 and text != "none"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a share of the schedule above 0, at most 1, or none")
    return value


def _range(text: str) -> tuple[int, int]:
    share, _, shares = text.partition("/")
    if not (share.isdecimal() and shares.isdecimal() and 1 <= int(share) <= int(shares)):
        raise argparse.ArgumentTypeError(f"{text!r}: give I/N with I from 1 to N, e.g. 1/8")
    return int(share), int(shares)


def _versions() -> dict[str, str]:
    import cv2

    packages = ("numpy", "av", "pillow", "torch", "webdataset")
    return {
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        **{name: version(name) for name in packages},
    }


def _report(out: Path, manifest: dict[str, Any]) -> None:
    frames, dropped = manifest["frames"], manifest["dropped"]
    shares = ", ".join(f"{split} {sum(counts.values())}" for split, counts in manifest["counts"].items())
    print(f"{out}: {frames['kept']} pairs of {frames['seen']} frames in {len(manifest['shards'])} shards ({shares})")
    if dropped:
        print("dropped: " + ", ".join(f"{reason} {count}" for reason, count in dropped.items()) + " (dropped.jsonl)")
