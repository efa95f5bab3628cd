"""`python -m data_prep build`: from a HOI4D tree to HO3Pairs WebDataset shards."""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from data_prep import hoi4d
    from data_prep.pairing import PairSettings
    from data_prep.shards import Part

PART_VERSION = 2  # raise it when the same clip and settings give other samples: unfinished builds then start afresh
PARTS = ".parts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--hoi4d",
        type=Path,
        required=True,
        metavar="ROOT",
        help="folder that holds HOI4D_release/, HOI4D_annotations/, the hand poses and release.txt; "
        "`python -m data_prep demo` draws one",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--remover", choices=["opencv"], default="opencv", help="what removes the hands")
    parser.add_argument("--size", type=int, default=512, help="side of the crops in pixels; 256 for the paper's scale")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of the splits and the shuffle")
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


def run(args: argparse.Namespace) -> None:
    """Build the shards, or find them built.

    An interrupted build goes on where it was when it is started again with the same arguments.

    Raises:
        InputError: no clip at ROOT, OUT cannot be written or holds something else, or no frame gave a pair.
    """
    started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    _check(args)
    from data_prep import hoi4d, shards
    from data_prep.pairing import PairSettings
    from data_prep.truth import write_truth

    sequences, left_out = hoi4d.find_sequences(args.hoi4d)
    settings = _settings(args, sequences, [name for name, _, _ in left_out])
    if _is_finished(args.out, settings):
        shutil.rmtree(args.out / PARTS, ignore_errors=True)  # there if the build was killed at its very end
        print(f"{args.out}: up to date")
        return
    pair_settings = PairSettings(args.size, args.stride, args.min_hand_area)
    folder = _open_parts(
        args.out, {"root": str(args.hoi4d.resolve()), "remover": args.remover, **asdict(pair_settings)}
    )
    parts = _make_parts(sequences, pair_settings, folder, args.workers)

    drops = [
        {
            "sequence": name,
            "frame": None,
            "reason": reason,
            "path": path.relative_to(args.hoi4d).as_posix(),
            "detail": "",
        }
        for name, reason, path in left_out
    ] + [drop for part in parts for drop in part.drops]
    shards.write_text(args.out / "dropped.jsonl", "".join(json.dumps(drop) + "\n" for drop in drops))
    splits = shards.assign_splits((part.instance for part in parts if part.spans), args.splits, args.seed)
    if not splits:
        raise InputError(f"--hoi4d {args.hoi4d}: no frame gave a pair; {args.out / 'dropped.jsonl'} says why of each")
    written = shards.write_shards(args.out, parts, splits, args.seed, args.samples_per_shard)
    truth = write_truth(args.out, written, args.hoi4d, args.size)
    shards.write_text(args.out / "splits.json", json.dumps(splits, indent=1) + "\n")
    manifest = shards.manifest(parts, splits, written, drops) | settings | ({"truth": truth} if truth else {})
    seconds = round(time.monotonic() - started[0], 1)
    manifest["run"] = {
        "command": shlex.join(sys.argv),
        "versions": _versions(),
        "started": started[1],
        "seconds": seconds,
    }
    shards.write_text(args.out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(folder)
    _report(args.out, manifest)


def build_part(sequence: "hoi4d.Sequence", settings: "PairSettings", folder: Path) -> None:
    """Make one clip's part; what a worker process runs."""
    from data_prep.remove_hand import OpenCVRemover
    from data_prep.shards import part_path, write_part

    with _one_thread():
        write_part(sequence, settings, OpenCVRemover(), part_path(folder, sequence))


def _check(args: argparse.Namespace) -> None:
    for name, low, high in (
        ("size", 64, 4096),
        ("workers", 1, 4096),
        ("stride", 1, 10**6),
        ("samples_per_shard", 1, 10**9),
    ):
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give a number from {low} to {high}")
    if not 0 <= args.min_hand_area < 1:
        raise InputError(f"--min-hand-area {args.min_hand_area}: give a share of the crop, 0 to below 1")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        probe = args.out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out {args.out}: cannot be written ({error.strerror}); choose another folder") from None


def _settings(
    args: argparse.Namespace, sequences: "Sequence[hoi4d.Sequence]", left_out: Sequence[str]
) -> dict[str, Any]:
    """What the shards' bytes depend on; the input enters by its clips and the sizes of their videos."""
    lines = [f"{sequence.name} {sequence.video.stat().st_size}" for sequence in sequences] + sorted(left_out)
    return {
        "input": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "size": args.size,
        "seed": args.seed,
        "stride": args.stride,
        "min_hand_area": args.min_hand_area,
        "splits": list(args.splits),
        "samples_per_shard": args.samples_per_shard,
        "remover": args.remover,
        "sdedit": "none",
    }


def _is_finished(out: Path, settings: dict[str, Any]) -> bool:
    path = out / "manifest.json"
    if not path.is_file():
        if any(out.glob("*.tar")) and not (out / PARTS).is_dir():
            raise InputError(f"--out {out}: holds tars that are not from an unfinished build; choose another folder")
        return False
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError:
        manifest = {}
    differing = [name for name, value in settings.items() if manifest.get(name) != value]
    if differing:
        raise InputError(f"--out {out}: holds shards with another {', '.join(differing)}; choose another folder")
    return True


def _open_parts(out: Path, settings: dict[str, Any]) -> Path:
    """Folder of the parts; those of other settings are discarded."""
    from data_prep.shards import write_text

    folder, record = out / PARTS, json.dumps(settings | {"version": PART_VERSION}, sort_keys=True)
    known = folder / "settings.json"
    if folder.is_dir() and not (known.is_file() and known.read_text() == record):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_text(known, record)
    # A build broken off among its shards may have left some of an older seed's.
    for pattern in ("train-*.tar", "val-*.tar", "test-*.tar", "truth-*.tar", ".*.tmp"):
        for leftover in out.glob(pattern):
            leftover.unlink()
    return folder


def _make_parts(
    sequences: "Sequence[hoi4d.Sequence]", settings: "PairSettings", folder: Path, workers: int
) -> "list[Part]":
    from tqdm import tqdm

    from data_prep.shards import part_path, read_part

    todo = [sequence for sequence in sequences if not part_path(folder, sequence).is_file()]
    done = len(sequences) - len(todo)
    with tqdm(total=len(sequences), initial=done, unit="clip", desc="pairs", disable=not todo) as bar:
        for _ in _run_all(todo, settings, folder, min(workers, max(len(todo), 1))):
            bar.update()
    return [read_part(part_path(folder, sequence)) for sequence in sequences]


def _run_all(
    sequences: "Sequence[hoi4d.Sequence]", settings: "PairSettings", folder: Path, workers: int
) -> Iterator[None]:
    if workers == 1:
        for sequence in sequences:
            build_part(sequence, settings, folder)
            yield
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_die_with_parent)
    try:
        for future in as_completed([pool.submit(build_part, sequence, settings, folder) for sequence in sequences]):
            future.result()
            yield
    except BrokenProcessPool:
        raise InputError(
            f"--workers {workers}: a worker was killed, probably for want of memory; start again with fewer, "
            "finished clips are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """Without this the workers of a killed build would wait for work for ever."""
    import multiprocessing
    import threading

    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread per process: clips run beside each other, and floats do not depend on the machine's cores."""
    import cv2
    import torch

    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def _fractions(text: str) -> tuple[float, float]:
    values = tuple(float(value) for value in text.split(","))
    if len(values) != 2 or min(values) < 0 or sum(values) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give two shares of at most 1 together, e.g. 0.1,0.1")
    return values[0], values[1]


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
