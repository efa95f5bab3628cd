"""`python -m data_prep demo OUT`: draw a small HOI4D, so that everything can be tried without a download."""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:  # --help must not load it
    from data_prep.mini.splits import Split
    from data_prep.mini.world import Clip

WEIGHTS_SEED = 1_000_000  # seeds from here on are kept for weights that are shipped; no data set uses them
VERSION = 3  # raise it when the same settings give other files
SPLITS = ("all", "train", "seen", "unseen", "category", "clutter", "varied")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `demo`."""
    parser.description = "Draw a small fake HOI4D data set: videos, masks, action files, hand pickles, and the truth."
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; a stopped run goes on where it was")
    parser.add_argument("--clips", type=int, default=48, help="number of sequences (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="frames per sequence (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="all",
        help="train: five categories, instances 1-36; seen: other clips of these; unseen: instances 37-45; "
        "category: kettles, which train has none of; clutter: unseen ones, always among other things; "
        "varied: train's categories, an object of its own in every clip; "
        "all: six categories, all instances (default: %(default)s)",
    )
    parser.add_argument(
        "--traps",
        default="all",
        metavar="all|none|NAME,...",
        help="which of HOI4D's traps to plant; OUT/traps.json lists them (default: %(default)s)",
    )
    parser.add_argument(
        "--for-weights",
        action="store_true",
        help=f"add {WEIGHTS_SEED} to the seed: worlds for weights that are shipped, which no data set shares",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes, one per core (default: %(default)s)"
    )
    parser.add_argument("--sheet", action="store_true", help="also draw OUT/sheet.png, pairs, and OUT/truth.png")
    parser.add_argument(
        "--distortions", action="store_true", help="also draw OUT/distortions, pictures that metrics should tell apart"
    )


@dataclass(frozen=True)
class World:
    """What a tree is drawn from.

    Attributes:
        clips: number of sequences.
        frames: frames per sequence.
        seed: the world's seed.
        split: which clips are drawn.
        traps: names of the traps.
    """

    clips: int
    frames: int
    seed: int
    split: "Split" = "all"
    traps: frozenset[str] = frozenset()

    def all_clips(self) -> "list[Clip]":
        """The clips, nothing of them painted yet."""
        from data_prep.mini.traps import plant_traps
        from data_prep.mini.world import Clip

        planted = plant_traps(self.seed, self.clips, self.traps)
        return [Clip(self.seed, index, self.frames, self.split, names) for index, names in enumerate(planted)]

    @property
    def settings(self) -> dict[str, Any]:
        """The content of demo.json."""
        return {
            "clips": self.clips,
            "frames": self.frames,
            "seed": self.seed,
            "split": self.split,
            "traps": sorted(self.traps),
            "version": VERSION,
        }


def run(args: argparse.Namespace) -> None:
    """Draw what the arguments ask for.

    Raises:
        InputError: a number is out of range, there is no such trap, or OUT holds another demo.
    """
    from data_prep.mini.splits import MAX_CLIPS
    from data_prep.mini.traps import chosen_traps
    from data_prep.mini.world import MIN_FRAMES

    for name, low, high in (
        ("clips", 1, MAX_CLIPS), ("frames", MIN_FRAMES, 100_000), ("seed", 0, WEIGHTS_SEED - 1), ("workers", 1, 1024),
    ):  # fmt: skip
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name} is {getattr(args, name)}; give a number from {low} to {high}")
    seed = args.seed + (WEIGHTS_SEED if args.for_weights else 0)
    world = World(args.clips, args.frames, seed, args.split, chosen_traps(args.traps))
    draw_world(args.out, world, args.workers)
    if args.sheet:
        from data_prep.mini.sheet import write_sheet, write_truth_sheet

        write_sheet(args.out / "sheet.png", world.all_clips())
        write_truth_sheet(args.out / "truth.png", world.all_clips())
    if args.distortions:
        from data_prep.mini.distortions import write_distortions

        write_distortions(args.out, seed)


def draw_world(out: Path, world: World, workers: int) -> None:
    """Draw a whole tree; finished clips are kept, a finished tree is left alone.

    Args:
        out: folder to write.
        world: what to draw.
        workers: number of processes; the files do not depend on it.

    Raises:
        InputError: `out` holds a demo with other settings.
    """
    from tqdm import tqdm

    from data_prep.mini.traps import trap_record

    finished, begun = out / "demo.json", out / "demo.part.json"
    for marker in (finished, begun):
        if marker.exists():
            _check_settings(marker, world.settings)
    if finished.exists():
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out} ({error.strerror}); choose another OUT") from None
    _write_json(begun, world.settings)

    clips = world.all_clips()
    _write_lists(out, clips, crlf="crlf_list" in world.traps)
    _write_json(out / "traps.json", trap_record(clips, world.traps))
    with tqdm(total=len(clips), unit="clip", desc="demo") as bar:
        _for_each([(out, clip) for clip in clips], workers, bar.update)
    begun.replace(finished)


def _check_settings(marker: Path, settings: dict[str, Any]) -> None:
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        held = {}
    differing = [name for name, value in settings.items() if held.get(name) != value]
    if differing:
        raise InputError(f"{marker} is of a demo with another {', '.join(differing)}; choose another OUT")


def _write_lists(out: Path, clips: "list[Clip]", crlf: bool) -> None:
    """Write release.txt, and testset.txt where there are clips for it."""
    released = [clip.sequence for clip in clips if "unlisted_video" not in clip.traps]
    test = [clip.sequence for clip in clips if "unlisted_video" in clip.traps]
    end = "\r\n" if crlf else "\n"
    (out / "release.txt").write_bytes("".join(name + end for name in released).encode())
    if crlf:
        test = [*test, released[0], *test[:1], released[0]]
    if test:
        (out / "testset.txt").write_bytes(end.join(test).encode() + (b"" if crlf else b"\n"))


def _for_each(jobs: "list[tuple[Path, Clip]]", workers: int, done: Callable[[], object]) -> None:
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


def _draw_clip(out: Path, clip: "Clip") -> None:
    import copy

    import cv2

    from data_prep.mini.hoi4d_files import video_path, write_clip
    from data_prep.mini.traps import TRAPS
    from data_prep.mini.truth import write_truth

    cv2.setNumThreads(1)  # the processes share the cores already
    clip = copy.deepcopy(clip)  # 60 MB of pictures would stay in the caller's list
    if video_path(out, clip.sequence).exists():
        return
    if not any(TRAPS[name].whole for name in clip.traps):
        write_truth(out, clip)
    write_clip(out, clip)


def _write_json(path: Path, content: object) -> None:
    part = path.with_name(path.name + ".tmp")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
