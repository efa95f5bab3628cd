"""`python -m data_prep demo OUT`: draw a small HOI4D, so that everything can be tried without a download."""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:  # --help must not load them
    import numpy as np

    from data_prep.mini.hoi4d_files import Trap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `demo`."""
    parser.description = "Draw a small fake HOI4D data set: videos, masks, action files, hand pickles."
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; a stopped run goes on where it was")
    parser.add_argument("--clips", type=int, default=48, help="number of sequences (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="frames per sequence (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes, one per core (default: %(default)s)"
    )
    parser.add_argument("--sheet", action="store_true", help="also write OUT/sheet.png, 24 crops without and with hand")


def run(args: argparse.Namespace) -> None:
    """Draw what the arguments ask for.

    Raises:
        InputError: a number is out of range, or OUT holds another demo.
    """
    from data_prep.mini.world import MAX_CLIPS, MIN_FRAMES

    for name, low, high in (
        ("clips", 1, MAX_CLIPS), ("frames", MIN_FRAMES, 100_000), ("seed", 0, 2**63 - 1), ("workers", 1, 1024),
    ):  # fmt: skip
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name} is {getattr(args, name)}; give a number from {low} to {high}")
    draw_world(args.out, args.clips, args.frames, args.seed, args.workers)
    if args.sheet:
        write_sheet(args.out / "sheet.png", args.clips, args.frames, args.seed)


def draw_world(out: Path, clips: int, frames: int, seed: int, workers: int) -> None:
    """Draw a whole tree; finished clips are kept, a finished tree is left alone.

    Args:
        out: folder to write.
        clips: number of sequences.
        frames: frames per sequence.
        seed: the world's seed.
        workers: number of processes; the files do not depend on it.

    Raises:
        InputError: `out` holds a demo with other settings.
    """
    from tqdm import tqdm

    from data_prep.mini.world import Clip

    settings = {"clips": clips, "frames": frames, "seed": seed, "version": 1}
    finished, begun = out / "demo.json", out / "demo.part.json"
    for marker in (finished, begun):
        if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != settings:
            raise InputError(f"{out} holds a demo with other settings ({marker.name}); choose another OUT")
    if finished.exists():
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out} ({error.strerror}); choose another OUT") from None
    _write_json(begun, settings)

    traps = plant_traps(clips)
    sequences = [Clip(seed, index, frames).sequence for index in range(clips)]
    (out / "release.txt").write_bytes("".join(f"{s}\r\n" for s in sequences).encode())
    _write_json(out / "traps.json", {sequences[index]: trap for index, trap in traps.items()})
    with tqdm(total=clips, unit="clip", desc="demo") as bar:
        _for_each([(out, seed, index, frames, traps.get(index)) for index in range(clips)], workers, bar.update)
    begun.replace(finished)


def plant_traps(clips: int) -> "dict[int, Trap]":
    """Which clips get which trap: none below 12 clips; those that cost a whole clip on at most about 4 % of them."""
    if clips < 12:
        return {}
    costly: list[Trap] = ["truncated_mp4", "no_2dseg", "empty_action"]
    kinds: list[Trap] = ["broken_pickles", "no_pickles", *costly[: max(1, round(0.04 * clips))]]
    return {(2 * i + 1) * clips // (2 * len(kinds)): kind for i, kind in enumerate(kinds)}


def write_sheet(path: Path, clips: int, frames: int, seed: int, side: int = 128, pairs: int = 24) -> None:
    """Write a contact sheet of crops, object beside hand, six pairs a row."""
    import cv2
    import numpy as np

    from data_prep.mini.world import Clip

    tiles = []
    for k in range(pairs):
        clip = Clip(seed, k % clips, frames)
        begin = clip.events[2][1]
        frame = clip.frame(begin + (k // clips) % (clip.events[-1][1] - begin))
        x0, y0, x1, y1 = _crop(clip.object_mask)
        crops = [picture[y0:y1, x0:x1] for picture in (clip.clean, frame.rgb)]
        tiles.append(np.hstack([cv2.resize(c, (side, side), interpolation=cv2.INTER_AREA) for c in crops]))
    sheet = np.vstack([np.hstack(tiles[row : row + 6]) for row in range(0, pairs, 6)])
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


def _crop(mask: "np.ndarray") -> tuple[int, int, int, int]:
    rows, columns = mask.nonzero()
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    side = int(2.6 * max(right - left, bottom - top))
    x0 = min(max((left + right - side) // 2, 0), mask.shape[1] - side)
    y0 = min(max((top + bottom - side) // 2, 0), mask.shape[0] - side)
    return x0, y0, x0 + side, y0 + side


def _for_each(jobs: list[tuple[Any, ...]], workers: int, done: Callable[[], object]) -> None:
    if workers == 1:
        for job in jobs:
            _draw_clip(*job)
            done()
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_draw_clip, *job) for job in jobs]):
            future.result()
            done()
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_clip(out: Path, seed: int, index: int, frames: int, trap: "Trap | None") -> None:
    import cv2

    from data_prep.mini.hoi4d_files import video_path, write_clip
    from data_prep.mini.world import Clip

    cv2.setNumThreads(1)  # the processes share the cores already
    clip = Clip(seed, index, frames)
    if not video_path(out, clip.sequence).exists():
        write_clip(out, clip, trap)


def _write_json(path: Path, content: object) -> None:
    part = path.with_name(path.name + ".tmp")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
