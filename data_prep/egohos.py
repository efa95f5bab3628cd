"""Reader of EgoHOS: single pictures of hands and the objects they hold, labelled by which hand holds what.

The tree is `{train,val,test_indomain,test_outdomain}/{image,label,contact}/NAME`. Labels: 1 left hand, 2 right hand; 3,
4 and 5 the object that the left, the right or both hands touch; 6, 7 and 8 what those objects touch in turn. There are
no events, no keypoints and no categories, and a label map says itself what is in contact: `contact/` is not read.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_prep.labels import LabelMap, among
from data_prep.resize import resize_window
from data_prep.sources import Box, Drop, Fault, Moment, Picture, Side, Survey
from hoi_lightning.errors import InputError

FOLDERS = ("train", "val", "test_indomain", "test_outdomain")
HANDS: dict[Side, int] = {"right": 2, "left": 1}
HELD: dict[Side, tuple[int, int]] = {"right": (4, 5), "left": (3, 5)}  # by this hand alone, by both
NUM_LABELS = 9
CATEGORY = "Object"
_MAX_PIXELS = 1 << 26  # of a label map, before it is decoded


@dataclass(frozen=True)
class Pictures:
    """Pictures of one folder whose names differ in their last number only: from one video, so never in two splits.

    Attributes:
        root: the data set's root.
        name: folder and common part of the file names, e.g. `train/ego4d_21a`.
        files: frame number and file stem, in order.
    """

    root: Path
    name: str
    files: tuple[tuple[int, str], ...]

    is_video = False
    category = CATEGORY
    hand_labels = HANDS

    @property
    def task(self) -> str:
        """The folder: `train`, `val`, `test_indomain` or `test_outdomain`."""
        return self.name.partition("/")[0]

    @property
    def instance(self) -> str:
        """What stands for the object: the video."""
        return self.name.partition("/")[2]

    @property
    def num_bytes(self) -> int:
        """Size of all pictures."""
        return sum(self._picture(frame).stat().st_size for frame in self._stems)

    @cached_property
    def _stems(self) -> dict[int, str]:
        return dict(self.files)

    @cached_property
    def valid(self) -> Box:
        """The whole picture, as large as the first label map that can be read."""
        fault: Fault | None = None
        for frame in self._stems:
            try:
                return 0, 0, *self._size(self.mask(frame))
            except Fault as error:
                fault = fault or error
        raise fault or AssertionError("a clip has a picture")

    def key(self, frame: int) -> str:
        """Sample key of a picture: no dots, no slashes."""
        return f"{self.name.replace('/', '_')}_f{frame:05d}"

    def moments(self) -> list[Moment]:
        """Every picture may be a pair."""
        return [Moment(frame) for frame in self._stems]

    def mask(self, frame: int) -> Path:
        """Label map of a picture."""
        return self.root / self.task / "label" / f"{self._stems[frame]}.png"

    def labels(self, frame: int) -> LabelMap:
        """Labels of a picture, 0 to 8.

        Raises:
            Fault: missing, undecodable, not of one channel or not of the clip's size, or with other values.
        """
        path = self.mask(frame)
        width, height = self._size(path)
        if (width, height) != self.valid[2:]:
            raise Fault("bad-mask", path, f"is {width}x{height}, others of the clip {self.valid[2]}x{self.valid[3]}")
        try:
            with Image.open(path, formats=["PNG"]) as image:
                labels = np.array(image)  # of an indexed PNG the indices
        except (OSError, SyntaxError, ValueError) as error:
            raise Fault("bad-mask", path, str(error)) from None
        if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max() >= NUM_LABELS:
            raise Fault("bad-mask", path, f"expected one channel of labels 0 to {NUM_LABELS - 1}")
        return LabelMap.whole(labels)

    def touched(self, labels: np.ndarray) -> tuple[Side, tuple[int, ...]] | None:
        """Find the hand that holds something, as the labels say, and that object's label."""
        for side, hand in HANDS.items():
            held = [label for label in HELD[side] if among(labels, [label]).any()]
            if held and among(labels, [hand]).any():
                return side, (held[0],)
        return None

    def keypoints(self, frame: int, side: Side) -> None:
        """EgoHOS has none."""

    def pictures(self, frames: Collection[int]) -> Iterator[tuple[int, Picture | Fault]]:
        """Read the wanted pictures; a fault is one's own that cannot be decoded or has not its label map's size."""
        for frame in (frame for frame in self._stems if frame in frames):
            path = self._picture(frame)
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if picture is None:
                yield frame, Fault("bad-picture", path, "cannot be decoded")
            elif picture.shape[1::-1] != self.valid[2:]:
                yield (
                    frame,
                    Fault("bad-picture", path, f"is {picture.shape[1]}x{picture.shape[0]}, unlike its label map"),
                )
            else:
                yield frame, partial(_window, picture)

    def survey(self) -> Survey:
        """Count the label maps."""
        masks = sum(self.mask(frame).is_file() for frame in self._stems)
        missing = ("no-mask",) if masks < len(self.files) else ()
        return Survey(self.task, len(self.files), masks, masks, 0, missing)

    def _picture(self, frame: int) -> Path:
        path = self.root / self.task / "image" / f"{self._stems[frame]}.jpg"
        return path if path.is_file() else path.with_suffix(".png")

    @staticmethod
    def _size(path: Path) -> tuple[int, int]:
        if not path.is_file():
            raise Fault("no-mask", path)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                size = image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise Fault("bad-mask", path, str(error)) from None
        if size[0] * size[1] > _MAX_PIXELS:
            raise Fault("bad-mask", path, f"is {size[0]}x{size[1]}")
        return size


@dataclass(frozen=True)
class EgoHOS:
    """EgoHOS as a `PairSource`.

    Attributes:
        root: folder that holds `train`, `val` and so on.
    """

    root: Path

    def find(self) -> tuple[list[Pictures], list[Drop]]:
        """List the pictures, by video.

        Raises:
            InputError: no such folder, or no picture in it.
        """
        groups: dict[str, dict[int, str]] = defaultdict(dict)
        left_out: list[Drop] = []
        for folder in FOLDERS:
            files = sorted((self.root / folder / "image").glob("*"))
            for path in (path for path in files if path.suffix in (".jpg", ".png")):
                match = re.fullmatch(r"(.*?)[_-]?(\d+)", path.stem)
                video, frame = (match[1] or "pictures", int(match[2])) if match else (path.stem, 0)
                name = f"{folder}/{_plain(video)}"
                if frame in groups[name]:
                    shown = path.relative_to(self.root).as_posix()
                    left_out.append(Drop(name, frame, "same-frame", shown, f"{groups[name][frame]} has its number"))
                else:
                    groups[name][frame] = path.stem
        if not groups:
            raise InputError(f"{self.root}: no picture at {{{','.join(FOLDERS)}}}/image/; give the folder of EgoHOS")
        clips = [Pictures(self.root, name, tuple(sorted(files.items()))) for name, files in sorted(groups.items())]
        return clips, left_out

    def formats(self) -> dict[str, str]:
        """Which of its folders are there."""
        there = [folder for folder in FOLDERS if (self.root / folder / "image").is_dir()]
        return {
            "folders": ", ".join(there) or "none",
            "events": "none: every picture is looked at",
            "hand poses": "none",
        }


def _window(picture: np.ndarray, box: Box, size: int) -> np.ndarray:
    """A window, in RGB, of a picture whose blue comes first."""
    return np.asarray(cv2.cvtColor(resize_window(picture, box, size), cv2.COLOR_BGR2RGB))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
