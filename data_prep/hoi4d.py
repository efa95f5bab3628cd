"""Reader of HOI4D as it lies on disk: sequences, masks, action events, hand keypoints, video.

Frames are 0-based everywhere. Whatever is wrong with a file is a `Fault` with a reason and a path: the caller decides
whether that costs a frame or a sequence, and writes it into the ledger.
"""

import io
import json
import math
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np

from hoi_lightning.errors import InputError

Side = Literal["right", "left"]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive

WIDTH, HEIGHT, FPS = 1920, 1080, 15

CATEGORIES = {
    "C1": "ToyCar",
    "C2": "Mug",
    "C3": "Laptop",
    "C4": "StorageFurniture",
    "C5": "Bottle",
    "C6": "Safe",
    "C7": "Bowl",
    "C8": "Bucket",
    "C9": "Scissors",
    "C11": "Pliers",
    "C12": "Kettle",
    "C13": "Knife",
    "C14": "TrashCan",
    "C17": "Lamp",
    "C18": "Stapler",
    "C20": "Chair",
}

# Mask colours, RGB: Pascal VOC's, label 0 to 9.
PALETTE = (
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (0, 128, 128),
    (128, 128, 128),
    (64, 0, 0),
    (192, 0, 0),
)
UNKNOWN_LABEL = 255
RIGHT_HAND = 2
LEFT_HAND = {"C8": 6, "C17": 6, "C20": 3}  # elsewhere a left hand is not labelled at all

# Labels that are parts of one object; a label that is not listed is an object of its own (label.csv of HOI4D).
PARTS = {
    "C3": ((1, 3),),
    "C4": ((1, 3, 4),),
    "C6": ((1, 3),),
    "C8": ((1, 3), (4, 5)),
    "C9": ((1, 3),),
    "C11": ((1, 3),),
    "C14": ((1, 3),),
    "C17": ((1, 3, 4, 5),),
    "C18": ((1, 3, 4),),
}

# Event names in lower case, letters only.
# fmt: off
CONTACT_EVENTS = frozenset({
    "grasp", "pickup", "carry", "carrywithbothhands", "putdown", "open", "close", "push", "pull", "dump", "cut",
    "papercut", "press", "binding", "turnontheswitch",
})
IDLE_EVENTS = frozenset({"rest", "reachout", "stop", "go", "lookaround"})
# fmt: on

# The released RGB of cameras 2 to 4 is shifted: black columns at the left, black rows at the bottom.
_VALID: dict[str, Box] = {
    "ZY20210800001": (0, 0, WIDTH, HEIGHT),
    "ZY20210800002": (15, 0, WIDTH, 1077),
    "ZY20210800003": (15, 0, WIDTH, 1050),
    "ZY20210800004": (15, 0, WIDTH, 1077),
}

_HAND_FOLDERS: dict[Side, tuple[str, ...]] = {
    side: (
        f"handpose/refinehandpose_{side}",
        f"Hand_pose/handpose_{side}_hand",
        f"refinehandpose_{side}",
        f"handpose_{side}_hand",
    )
    for side in ("right", "left")
}
_SEQUENCE = re.compile(r"ZY\d+/H\d+/C\d+/N\d+/S\d+/s\d+/T\d+")


class Fault(Exception):
    """Something in the data that costs a frame or a sequence.

    Attributes:
        reason: ledger word, e.g. `bad-mask`.
        path: the file or folder at fault.
        detail: what is wrong with it.
    """

    def __init__(self, reason: str, path: Path, detail: str = "") -> None:
        super().__init__(reason, path, detail)
        self.reason, self.path, self.detail = reason, path, detail


@dataclass(frozen=True)
class Event:
    """An action event on the video's frames.

    Attributes:
        name: as HOI4D stores it, e.g. `Carrywithbothhands`.
        first: its first frame.
        stop: the frame after its last.
    """

    name: str
    first: int
    stop: int

    @property
    def kind(self) -> Literal["contact", "idle", "unknown"]:
        """Whether a hand touches something in it; `unknown` for a name outside HOI4D's list."""
        name = re.sub(r"[^a-z]", "", self.name.lower())
        return "contact" if name in CONTACT_EVENTS else "idle" if name in IDLE_EVENTS else "unknown"


@dataclass(frozen=True)
class Sequence:
    """One clip of a HOI4D tree.

    Attributes:
        root: the tree's root.
        name: `ZY20210800001/H1/C2/N04/S12/s03/T1`.
    """

    root: Path
    name: str

    @cached_property
    def parts(self) -> list[str]:
        """The seven levels: camera, human, category, instance, room, room layout, task."""
        return self.name.split("/")

    @property
    def camera(self) -> str:
        """Camera id, e.g. `ZY20210800001`."""
        return self.parts[0]

    @property
    def category_id(self) -> str:
        """Category as in the path, e.g. `C2`."""
        return self.parts[2]

    @property
    def category(self) -> str:
        """Category's name, e.g. `Mug`; the id itself for a category that HOI4D has not released."""
        return CATEGORIES.get(self.category_id, self.category_id)

    @property
    def instance(self) -> str:
        """Object instance inside the category, e.g. `N04`."""
        return self.parts[3]

    @property
    def task(self) -> str:
        """Task inside the category, e.g. `T1`."""
        return self.parts[6]

    @property
    def valid(self) -> Box:
        """Rectangle of the frame that holds picture, without the camera's black borders."""
        return _VALID.get(self.camera, (0, 0, WIDTH, HEIGHT))

    @property
    def hand_labels(self) -> dict[Side, int]:
        """Mask label of each hand that this category labels."""
        left = LEFT_HAND.get(self.category_id)
        return {"right": RIGHT_HAND} if left is None else {"right": RIGHT_HAND, "left": left}

    @property
    def objects(self) -> list[tuple[int, ...]]:
        """Label groups of the objects, each the parts of one object."""
        groups = list(PARTS.get(self.category_id, ()))
        taken = {label for group in groups for label in group} | set(self.hand_labels.values())
        return groups + [(label,) for label in range(1, len(PALETTE)) if label not in taken]

    @property
    def video(self) -> Path:
        """The RGB video."""
        return _archive(self.root, "HOI4D_release") / self.name / "align_rgb" / "image.mp4"

    @property
    def actions(self) -> Path:
        """The action events."""
        return _archive(self.root, "HOI4D_annotations") / self.name / "action" / "color.json"

    def key(self, frame: int) -> str:
        """Sample key of a frame: no dots, no slashes."""
        return f"{self.name.replace('/', '_')}_f{frame:05d}"

    @cached_property
    def mask_folder(self) -> Path:
        """Folder of the masks: the single sub-folder of `2Dseg`, `mask` or `shift_mask` after the camera.

        Raises:
            Fault: there is none, or there are both.
        """
        parent = _archive(self.root, "HOI4D_annotations") / self.name / "2Dseg"
        found = [parent / name for name in ("mask", "shift_mask") if (parent / name).is_dir()]
        if len(found) != 1:
            raise Fault("no-mask-folder", parent, f"holds {[path.name for path in found]}, expected mask or shift_mask")
        return found[0]

    def mask(self, frame: int) -> Path:
        """Mask of a frame."""
        return self.mask_folder / f"{frame:05d}.png"

    def hand_pose(self, frame: int, side: Side) -> Path | None:
        """Hand pickle of a frame, or None if there is none: only frames with a visible hand have one."""
        for folder in _HAND_FOLDERS[side]:
            for name in (f"{frame}.pickle", f"{frame:05d}.pickle"):
                path = self.root / folder / self.name / name
                if path.is_file():
                    return path
        return None


def find_sequences(root: Path) -> tuple[list[Sequence], list[tuple[str, str, Path]]]:
    """List the clips of a tree: videos on disk that `release.txt`, where there is one, names too.

    Returns:
        The sequences by name, and (name, reason, path) of each clip that only the disk or only the list has.

    Raises:
        InputError: no such folder, or no video in it.
    """
    if not root.is_dir():
        raise InputError(f"--hoi4d {root}: no such folder; give the folder that holds HOI4D_release/")
    release = _archive(root, "HOI4D_release")
    videos = release.glob("ZY*/H*/C*/N*/S*/s*/T*/align_rgb/image.mp4")
    names = [path.parents[1].relative_to(release).as_posix() for path in videos]
    on_disk = {name for name in names if _SEQUENCE.fullmatch(name)}
    if not on_disk:
        raise InputError(
            f"--hoi4d {root}: no video at HOI4D_release/ZY*/H*/C*/N*/S*/s*/T*/align_rgb/image.mp4; unpack "
            "HOI4D_release.zip, HOI4D_annotations.zip and the hand poses there, or run `python -m data_prep demo`"
        )
    listing = root / "release.txt"
    if not listing.is_file():
        return [Sequence(root, name) for name in sorted(on_disk)], []
    listed = {line.strip().strip("/") for line in listing.read_text().splitlines()} - {""}
    left_out = [(name, "no-video", Sequence(root, name).video) for name in sorted(listed - on_disk)]
    left_out += [(name, "not-listed", listing) for name in sorted(on_disk - listed)]
    return [Sequence(root, name) for name in sorted(on_disk & listed)], left_out


def read_labels(path: Path, valid: Box) -> np.ndarray:
    """Read a mask's labels by exact colour.

    Indexed PNGs are read as the RGB picture they show, those of one grey channel as the labels themselves. Pixels
    outside `valid` are background.

    Args:
        path: the PNG.
        valid: rectangle that holds picture.

    Returns:
        uint8 (1080, 1920), 0 to 9.

    Raises:
        Fault: missing, undecodable, of another size, or more than 0.1 % of it in colours outside the palette.
    """
    if not path.is_file():
        raise Fault("no-mask", path)
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)  # converting to colours would make grey of label numbers
    if pixels is None or pixels.dtype != np.uint8:
        raise Fault("bad-mask", path, "cannot be decoded" if pixels is None else "is not an 8-bit picture")
    if pixels.shape[:2] != (HEIGHT, WIDTH):
        raise Fault("bad-mask", path, f"is {pixels.shape[1]}x{pixels.shape[0]}, expected {WIDTH}x{HEIGHT}")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR)
    channels = 1 if pixels.ndim == 2 else 3
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    left, top, width, height = cv2.boundingRect(pixels.reshape(HEIGHT, WIDTH * channels))
    x0, y0 = max(left // channels, valid[0]), max(top, valid[1])
    x1, y1 = min(-(-(left + width) // channels), valid[2]), min(top + height, valid[3])
    if x0 >= x1 or y0 >= y1:
        return labels
    window = pixels[y0:y1, x0:x1]
    if channels == 1:
        found = cv2.LUT(window, _LABEL_OF_GREY)
    else:
        # Each channel's four levels become one digit of a base-4 code; another level saturates the sum at 255.
        code = cv2.transform(cv2.LUT(window, _DIGITS), np.ones((1, 3), np.float32))
        found = cv2.LUT(code, _LABEL_OF_CODE)
    unknown = found == UNKNOWN_LABEL
    num_unknown = np.count_nonzero(unknown)
    if num_unknown > 1e-3 * WIDTH * HEIGHT:
        raise Fault("bad-mask", path, f"{num_unknown} pixels in colours outside HOI4D's palette")
    found[unknown] = 0
    labels[y0:y1, x0:x1] = found
    return labels


def bounding_box(region: np.ndarray) -> Box | None:
    """Box of the non-zero pixels of a bool or uint8 (H, W), None where there are none."""
    x, y, width, height = cv2.boundingRect(region.astype(np.uint8, copy=False))
    return (x, y, x + width, y + height) if width else None


def read_events(path: Path, num_frames: int) -> list[Event]:
    """Read `action/color.json`, either schema, either clock.

    A clip of 300 frames lasts 20 s on some clocks and 10 s on others; the frame of a time t is t·num_frames/duration,
    whatever the clip's length. Where the duration is missing it is the video's, 20 s of 300 frames, or half of it if
    the last event ends before 12 s of these 20.

    Raises:
        Fault: missing, empty or malformed.
    """
    try:
        record = json.loads(path.read_bytes())
        info = record.get("info") or {}
        if "markResult" in record:
            spans = [(e["event"], e["hdTimeStart"], e["hdTimeEnd"]) for e in record["markResult"]["marks"]]
        else:
            spans = [(e["event"], e["startTime"], e["endTime"]) for e in record["events"]]
        times = [(str(name), float(start), float(end)) for name, start, end in spans]
        duration = float(info.get("duration") or info.get("Duration") or 0)
    except OSError as error:
        raise Fault("no-actions", path, error.strerror or "") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault("no-actions", path, f"malformed: {error!r}") from None
    if not times or not all(math.isfinite(value) for _, *pair in times for value in (*pair, duration)):
        raise Fault("no-actions", path, "no events" if not times else "times are not finite")
    if duration <= 0:
        duration = num_frames / FPS
        if max(end for *_, end in times) < 0.6 * duration:
            duration /= 2

    def frame(t: float) -> int:
        return min(max(math.floor(t * num_frames / duration + 1e-6), 0), num_frames)

    return [Event(name, frame(start), frame(end)) for name, start, end in times]


def read_keypoints(path: Path) -> np.ndarray:
    """Read the 21 keypoints of a hand pickle, wrist first.

    Returns:
        float64 (21, 2): x, y in pixels of the released frame, pixel centres at integers; they may lie outside it.

    Raises:
        Fault: not a pickle of plain arrays, or the keypoints have another shape or are not finite.
    """
    try:
        record = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        keypoints, pose = np.asarray(record["kps2D"]).astype(np.float64), np.asarray(record["poseCoeff"])
    except Exception as error:  # a damaged pickle can raise anything
        raise Fault("bad-hand-pose", path, repr(error)) from None
    # HOI4D's failed registrations have a poseCoeff of one number.
    if keypoints.shape != (21, 2) or not np.isfinite(keypoints).all() or pose.size != 48:
        raise Fault("bad-hand-pose", path, f"kps2D {keypoints.shape} and poseCoeff {pose.shape}, or not finite")
    return keypoints


def count_frames(path: Path) -> int:
    """Read the number of frames from a video's header, without decoding it.

    Raises:
        Fault: it cannot be opened, or is not 1920x1080 at 15 frames per second.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            size, rate = (stream.width, stream.height), float(stream.average_rate or 0)
            frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, IndexError) as error:
        raise Fault("undecodable-video", path, getattr(error, "strerror", None) or repr(error)) from None
    if size != (WIDTH, HEIGHT) or abs(rate - FPS) > 0.1:
        raise Fault("undecodable-video", path, f"{size[0]}x{size[1]} at {rate:.2f} fps, expected 1920x1080 at 15 fps")
    return frames


def decode_video(path: Path) -> Iterator[av.VideoFrame]:
    """Decode a video from its first frame on, in one forward pass on one thread.

    Raises:
        Fault: damaged from here on; the frames before were good.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise Fault("undecodable-video", path, "a frame is damaged")
                yield frame
    except av.FFmpegError as error:
        raise Fault("undecodable-video", path, getattr(error, "strerror", None) or repr(error)) from None


def _archive(root: Path, name: str) -> Path:
    """Folder of an archive, or the root itself where a user has merged the archives into one tree."""
    return root / name if (root / name).is_dir() else root


def _code_tables() -> tuple[np.ndarray, np.ndarray]:
    digits = np.full((1, 256, 3), 255, np.uint8)
    for channel, weight in enumerate((1, 4, 16)):  # blue, green, red
        digits[0, [0, 64, 128, 192], channel] = weight * np.arange(4)
    label_of_code = np.full(256, UNKNOWN_LABEL, np.uint8)
    for label, (red, green, blue) in enumerate(PALETTE):
        label_of_code[red // 64 * 16 + green // 64 * 4 + blue // 64] = label
    return digits, label_of_code


_DIGITS, _LABEL_OF_CODE = _code_tables()
_LABEL_OF_GREY = np.full(256, UNKNOWN_LABEL, np.uint8)
_LABEL_OF_GREY[: len(PALETTE)] = np.arange(len(PALETTE))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers; any other global is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # NumPy 2 renamed it
        if (module, name) not in {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a hand pickle")
        return super().find_class(module, name)
