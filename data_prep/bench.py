"""`python -m data_prep bench`: how near `build` is to the codec work that nobody can save.

For the same clips, in shuffled turns on one core: `build`'s work with a remover that removes nothing; the bare codec
work of the same frames, each part by the fastest library at hand; and the way of Affordance Diffusion's preprocessing,
all frames to PNG first and then picture by picture.
"""

import argparse
import io
import json
import platform
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from data_prep.hoi4d import Sequence
    from data_prep.pairing import PairSettings
    from data_prep.remove_hand import RemovalRequest, Removed
    from hoi_lightning.data.sample import HOISample

Arm = tuple[str, str]  # part, library
OURS, PREDECESSOR = ("ours", ""), ("predecessor", "")
PARTS = ("video", "masks", "JPEG", "PNG")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--hoi4d", type=Path, required=True, metavar="ROOT", help="an unpacked HOI4D, or a demo")
    parser.add_argument("--out", type=Path, required=True, help="folder for build_cpu.json and build_cpu.md")
    parser.add_argument("--clips", type=int, default=6, help="first clips that give pairs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every clip")
    parser.add_argument("--size", type=int, default=512, help="side of the crops in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the turns and the bootstrap")


def run(args: argparse.Namespace) -> None:
    """Time, print and write the ratios.

    Raises:
        InputError: no clip at ROOT gives pairs, or a number is out of range.
    """
    for name in ("clips", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: give at least 1")
    from data_prep.launch import one_thread
    from data_prep.output import named_errors, write_text

    with one_thread():
        result = _measure(args)
    with named_errors(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(args.out / "build_cpu.json", json.dumps(result, indent=1) + "\n")
        write_text(args.out / "build_cpu.md", _table(result))
    print(_table(result), end="")


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time every arm on every clip, in shuffled turns."""
    from tqdm import tqdm

    from data_prep.pairing import PairSettings

    settings = PairSettings(size=args.size)
    shuffler = random.Random(args.seed)
    work = list(_works(args.hoi4d, settings, args.clips))
    seconds: list[dict[Arm, float]] = []  # by clip: least of the rounds
    with tqdm(total=len(work) * args.rounds, unit="clip", desc="bench") as bar:
        for clip in work:
            arms = _arms(clip, settings)
            taken: dict[Arm, list[float]] = {arm: [] for arm in arms}
            for number in range(args.rounds):
                for arm in shuffler.sample(list(arms), len(arms)):
                    if arm == PREDECESSOR and number:
                        continue  # minutes for a clip of 300 frames, and far from the others
                    start = _cpu_seconds()
                    for _ in arms[arm]():  # one at a time, as it is done: a heap of results would be slower
                        pass
                    taken[arm].append(_cpu_seconds() - start)
                bar.update()
            seconds.append({arm: min(values) for arm, values in taken.items()})
    return _result(work, seconds, args)


@dataclass(frozen=True, eq=False)
class _Work:
    """A clip and what `build` makes of it.

    Attributes:
        clip: the clip.
        num_decoded: frames up to the last that is needed.
        frames: those whose masks decide about a pair.
        samples: its pairs.
    """

    clip: "Sequence"
    num_decoded: int
    frames: list[int]
    samples: list["HOISample"]


def _cpu_seconds() -> float:
    """Of this process and of the finished ones that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _works(root: Path, settings: "PairSettings", count: int) -> Iterator[_Work]:
    from data_prep.hoi4d import find_sequences
    from data_prep.pairing import plan_clip
    from data_prep.sources import Fault

    found = 0
    for clip in find_sequences(root)[0]:
        if not isinstance(clip.video, Path):
            raise InputError(f"--hoi4d {root}: is zipped; the bench compares files on disk, unpack a few clips")
        try:
            plan = plan_clip(clip, settings)
        except Fault:
            continue
        if not plan.pairs:
            continue
        last = max(frame for pair in plan.pairs for frame in (pair.frame, pair.plate or 0))
        frames = [
            moment.frame for moment in clip.moments() if moment.fault is None and clip.mask(moment.frame).is_file()
        ]
        yield _Work(clip, last + 1, frames, list(_pairs(clip, settings)))
        found += 1
        if found == count:
            return
    if not found:
        raise InputError(f"--hoi4d {root}: no clip gives pairs; `python -m data_prep demo` draws some that do")


def _pairs(clip: "Sequence", settings: "PairSettings") -> Iterator["HOISample"]:
    """`build`'s pairs of a clip, no hand removed."""
    from data_prep.pairing import make_pairs, plan_clip
    from data_prep.sources import Drop

    for outcome in make_pairs(clip, plan_clip(clip, settings).pairs, settings, _keep):
        if not isinstance(outcome, Drop):
            yield outcome[0]


def _keep(requests: "Iterable[RemovalRequest]") -> "Iterator[Removed]":
    from data_prep.remove_hand import Removed

    return (Removed(request.hoi, request.hole, "none") for request in requests)


def _arms(work: _Work, settings: "PairSettings") -> dict[Arm, Callable[[], Iterable[object]]]:
    import cv2
    from PIL import Image

    from data_prep.encode import JPEG_OPTIONS, encode, encode_png

    masks = [str(work.clip.mask(frame)) for frame in work.frames]
    photographs: list[Any] = [picture for sample in work.samples for picture in (sample.hoi, sample.obj)]
    regions: list[Any] = [picture for sample in work.samples for picture in (sample.hand, sample.object)]
    return {
        OURS: lambda: (encode(sample) for sample in _pairs(work.clip, settings)),
        PREDECESSOR: lambda: _predecessor(work, settings.size),
        ("video", "PyAV"): lambda: _decode_by_pyav(work),
        ("video", "OpenCV"): lambda: _decode_by_opencv(work),
        ("masks", "OpenCV"): lambda: (cv2.imread(path, cv2.IMREAD_UNCHANGED) for path in masks),
        ("masks", "Pillow"): lambda: (Image.open(path).load() for path in masks),
        ("JPEG", "OpenCV"): lambda: (cv2.imencode(".jpg", picture, JPEG_OPTIONS) for picture in photographs),
        ("JPEG", "Pillow"): lambda: (
            _save(picture, "JPEG", quality=95, subsampling="4:2:0") for picture in photographs
        ),
        ("PNG", "OpenCV"): lambda: (
            cv2.imencode(".png", region.view("u1") * 255, [cv2.IMWRITE_PNG_BILEVEL, 1]) for region in regions
        ),
        ("PNG", "Pillow"): lambda: (_save(region, "PNG") for region in regions),
        ("PNG", "ISA-L"): lambda: map(encode_png, regions),
    }


def _save(picture: "np.ndarray", kind: str, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)  # of bool, a picture of 1 bit
    return buffer.getvalue()


def _decode_by_pyav(work: _Work) -> Iterator[object]:
    import av

    with av.open(str(work.clip.video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield from islice(container.decode(stream), work.num_decoded)


def _decode_by_opencv(work: _Work) -> Iterator[object]:
    import cv2

    capture = cv2.VideoCapture(str(work.clip.video), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    for _ in range(work.num_decoded):
        yield capture.grab()
    capture.release()


def _predecessor(work: _Work, size: int) -> Iterator[object]:
    """All frames to PNG, by ffmpeg where it is installed; then each picture opened, cropped and saved by Pillow."""
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _extract(work.clip.video, folder)
        for sample in work.samples:
            info = sample.info
            with Image.open(folder / f"{info.frame:05d}.png") as frame:
                picture = frame.convert("RGB").crop(info.crop).resize((size, size), Image.Resampling.LANCZOS)
            with Image.open(str(work.clip.mask(info.frame))) as mask:
                colours = np.array(mask.convert("RGB").crop(info.crop).resize((size, size), Image.Resampling.NEAREST))
            hand = (colours == (0, 128, 0)).all(-1)
            picture.save(folder / "hoi.png")
            picture.save(folder / "obj.png")
            Image.fromarray(~hand).save(folder / "mask.png")
            yield sample


def _extract(video: Any, folder: Path) -> None:
    if shutil.which("ffmpeg"):
        pattern = str(folder / "%05d.png")
        command = ["ffmpeg", "-loglevel", "error", "-threads", "1", "-i", str(video), "-start_number", "0", pattern]
        subprocess.run(command, check=True)
        return
    import av

    with av.open(str(video)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(folder / f"{index:05d}.png")


def _result(work: list[_Work], seconds: list[dict[Arm, float]], args: argparse.Namespace) -> dict[str, Any]:
    import cv2
    import numpy as np

    total = {arm: sum(clip[arm] for clip in seconds) for arm in seconds[0]}
    fastest = {part: min((arm for arm in total if arm[0] == part), key=total.__getitem__) for part in PARTS}
    ours = np.array([clip[OURS] for clip in seconds])
    bare = np.array([sum(clip[arm] for arm in fastest.values()) for clip in seconds])
    before = np.array([clip[PREDECESSOR] for clip in seconds])
    decoded, pairs = sum(one.num_decoded for one in work), sum(len(one.samples) for one in work)
    counts = {"video": decoded, "masks": sum(len(one.frames) for one in work), "JPEG": 2 * pairs, "PNG": 2 * pairs}
    return {
        "hoi4d": str(args.hoi4d),
        "size": args.size,
        "clips": len(work),
        "rounds": args.rounds,
        "seed": args.seed,
        "frames_decoded": decoded,
        "pairs": pairs,
        "codec_share": _ratio(bare, ours, args.seed),
        "times_predecessor": _ratio(before, ours, args.seed),
        "ms_per_pair": {name: 1000 * values.sum() / pairs for name, values in
                        (("ours", ours), ("codecs", bare), ("predecessor", before))},
        "parts": [
            {
                "part": part,
                "library": arm[1],
                "fastest": arm == fastest[part],
                "number": counts[part],
                "ms_each": 1000 * total[arm] / counts[part],
            }
            for part in PARTS
            for arm in total
            if arm[0] == part
        ],
        "frames_to_png_by": "ffmpeg" if shutil.which("ffmpeg") else "PyAV and Pillow",
        "versions": {
            "python": platform.python_version(),
            "opencv": cv2.__version__,
            **{name: version(name) for name in ("av", "pillow", "numpy")},
        },
    }  # fmt: skip


def _ratio(above: "np.ndarray", below: "np.ndarray", seed: int) -> dict[str, float]:
    """Ratio of the sums, with the 95 % bootstrap interval over clips."""
    import numpy as np

    chosen = np.random.default_rng(seed).integers(len(above), size=(4000, len(above)))
    low, high = np.quantile(above[chosen].sum(1) / below[chosen].sum(1), (0.025, 0.975))
    return {"ratio": float(above.sum() / below.sum()), "low": float(low), "high": float(high)}


def _table(result: dict[str, Any]) -> str:
    share, times = result["codec_share"], result["times_predecessor"]
    lines = [
        f"{result['pairs']} pairs of {result['clips']} clips at {result['size']} px, {result['frames_decoded']} frames "
        f"decoded, CPU seconds of one thread, least of {result['rounds']} shuffled turns, intervals over clips.",
        "",
        "| figure | ratio | 95 % interval | ms per pair |",
        "|---|---|---|---|",
        f"| bare codec work / ours | {share['ratio']:.2f} | {share['low']:.2f} to {share['high']:.2f} | "
        f"{result['ms_per_pair']['codecs']:.1f} / {result['ms_per_pair']['ours']:.1f} |",
        f"| all frames to PNG, then Pillow ({result['frames_to_png_by']}) / ours | {times['ratio']:.1f} | "
        f"{times['low']:.1f} to {times['high']:.1f} | {result['ms_per_pair']['predecessor']:.1f} |",
        "",
        "| codec work | library | number | ms each |",
        "|---|---|---|---|",
    ]
    for row in result["parts"]:
        name = f"**{row['library']}**" if row["fastest"] else row["library"]
        lines.append(f"| {row['part']} | {name} | {row['number']} | {row['ms_each']:.2f} |")
    return "\n".join(lines) + "\n"
