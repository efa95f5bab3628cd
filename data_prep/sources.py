"""What pairing asks of a data set: clips of pictures with label maps, some of them with events and keypoints.

A reader is a `PairSource`; HOI4D and EgoHOS are two. `open_source` gives the one that a user names. Frames are numbers
of the clip's own, pictures and label maps of one size.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from data_prep.labels import LabelMap

Side = Literal["right", "left"]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive
Dataset = Literal["hoi4d", "egohos"]
Picture = Callable[[Box, int], np.ndarray]  # brings a square window of it to a side S: uint8 (S, S, 3) RGB


class File(Protocol):
    """A file or folder of a data set, on disk or inside a zip; a `pathlib.Path` is one."""

    @property
    def name(self) -> str:
        """Last component of its path."""
        ...

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        ...

    def is_file(self) -> bool:
        """Whether it is there and a file."""
        ...

    def is_dir(self) -> bool:
        """Whether it is there and a folder."""
        ...

    def read_bytes(self) -> bytes:
        """Its content; an OSError where there is none."""
        ...

    def relative_to(self, root: Path, /) -> PurePath:
        """How the ledger calls it; `archive.zip!member` in a zip."""
        ...


class Fault(Exception):
    """Something in the data that costs a frame or a clip.

    Attributes:
        reason: ledger word, e.g. `bad-mask`.
        path: the file or folder at fault.
        detail: what is wrong with it.
    """

    def __init__(self, reason: str, path: File, detail: str = "") -> None:
        super().__init__(reason, path, detail)
        self.reason, self.path, self.detail = reason, path, detail


@dataclass(frozen=True)
class Drop:
    """A frame that gave no pair, or a whole clip (frame None), and why; the path is relative to the data set's root."""

    sequence: str
    frame: int | None
    reason: str
    path: str
    detail: str = ""

    @classmethod
    def of(cls, clip: "Clip", frame: int | None, fault: Fault) -> "Drop":
        """Write a fault down."""
        return cls(clip.name, frame, fault.reason, fault.path.relative_to(clip.root).as_posix(), fault.detail)


@dataclass(frozen=True)
class Moment:
    """A frame of a clip before any picture of it is looked at.

    Attributes:
        frame: its number.
        event: the action event covering it, as stored; empty where the data set has none.
        fault: why it cannot be a pair, None where it can.
    """

    frame: int
    event: str = ""
    fault: Fault | None = None


@dataclass(frozen=True)
class Survey:
    """What is there of a clip, found without decoding anything.

    Attributes:
        group: what the clip was taken with or belongs to, e.g. HOI4D's camera.
        frames: number of its frames.
        masks: number of its label maps.
        contact: number of frames that can be pairs.
        poses: number of its files with keypoints.
        missing: ledger word of each thing whose want costs the clip or frames of it.
    """

    group: str
    frames: int = 0
    masks: int = 0
    contact: int = 0
    poses: int = 0
    missing: tuple[str, ...] = field(default=())


class Clip(Protocol):
    """Pictures of one object by one camera; small, and pickled when it goes to another process."""

    @property
    def root(self) -> Path:
        """The data set's root."""
        ...

    @property
    def name(self) -> str:
        """Unique name of the clip, slashes allowed, e.g. `ZY20210800001/H1/C2/N04/S12/s03/T1`."""
        ...

    @property
    def category(self) -> str:
        """Clean name of the object's category, e.g. `Mug`."""
        ...

    @property
    def instance(self) -> str:
        """The object inside its category: (category, instance) is never in two splits."""
        ...

    @property
    def task(self) -> str:
        """What is done with it, as the data set calls it."""
        ...

    @property
    def valid(self) -> Box:
        """Rectangle of the frames that holds picture."""
        ...

    @property
    def hand_labels(self) -> Mapping[Side, int]:
        """Label of each hand that may be labelled."""
        ...

    @property
    def is_video(self) -> bool:
        """Whether frames follow each other closely enough for one to show what a hand hides in another."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of its pictures' files: what tells that the input has changed."""
        ...

    def key(self, frame: int) -> str:
        """Sample key of a frame: no dots, no slashes."""
        ...

    def moments(self) -> Sequence[Moment]:
        """All frames in order.

        Raises:
            Fault: the whole clip is of no use.
        """
        ...

    def mask(self, frame: int) -> File:
        """File of a frame's label map."""
        ...

    def labels(self, frame: int) -> "LabelMap":
        """Label map of a frame, 0 where no label is or outside `valid`.

        Raises:
            Fault: missing or damaged.
        """
        ...

    def touched(self, labels: np.ndarray) -> tuple[Side, tuple[int, ...]] | None:
        """Find the hand that touches an object and the labels of that object; the right hand goes first.

        Args:
            labels: uint8 (H, W).
        """
        ...

    def keypoints(self, frame: int, side: Side) -> np.ndarray | None:
        """The 21 keypoints of a hand, wrist first, float64 (21, 2) in pixels, pixel centres at integers; None = none.

        Raises:
            Fault: damaged.
        """
        ...

    def pictures(self, frames: Collection[int]) -> Iterator[tuple[int, Picture | Fault]]:
        """Read the wanted frames in order, each with its number, in one forward pass; a fault stands for one frame.

        Raises:
            Fault: damaged, or over, from here on; the frames before were good.
        """
        ...

    def survey(self) -> Survey:
        """Tell what is there, from names and small files alone."""
        ...


class PairSource(Protocol):
    """A data set that pairs can be made of."""

    @property
    def root(self) -> Path:
        """The folder a user gave."""
        ...

    def find(self) -> tuple[Sequence[Clip], list[Drop]]:
        """List the clips by name, and what is left out and why.

        Raises:
            InputError: no such folder, or no clip in it.
        """
        ...

    def formats(self) -> dict[str, str]:
        """In which of its known shapes each part of the data set lies here."""
        ...


def open_source(root: Path, dataset: Dataset = "hoi4d") -> PairSource:
    """Give the reader of a data set; nothing is read yet.

    Args:
        root: its folder.
        dataset: `hoi4d` or `egohos`.
    """
    if dataset == "hoi4d":
        from data_prep.hoi4d import HOI4D

        return HOI4D(root)
    from data_prep.egohos import EgoHOS

    return EgoHOS(root)
