"""One clip of HOI4D, and the data set as a source of clips."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.hoi4d.classes import CATEGORIES, FULL, HAND_FOLDERS, LEFT_HAND, NUM_FRAMES, PALETTE, PARTS, RIGHT_HAND
from data_prep.hoi4d.classes import VALID as VALID_OF_CAMERA
from data_prep.hoi4d.events import event_at, read_events
from data_prep.hoi4d.files import (
    HAND_ARCHIVES,
    Archive,
    Place,
    file_names,
    file_size,
    find_archive,
    frame_numbers,
    hand_folders,
    list_videos,
    sequence_folder,
)
from data_prep.hoi4d.masks import read_labels
from data_prep.hoi4d.poses import read_keypoints
from data_prep.hoi4d.video import count_frames, read_frames
from data_prep.labels import LabelMap, touched_by_reach
from data_prep.sources import Box, Drop, Fault, Moment, Picture, Side, Survey
from hoi_lightning.errors import InputError


@dataclass(frozen=True)
class Sequence:
    """One clip of a HOI4D tree; a `Clip`.

    Attributes:
        root: the tree's root.
        name: `ZY20210800001/H1/C2/N04/S12/s03/T1`.
    """

    root: Path
    name: str

    is_video = True

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
        return VALID_OF_CAMERA.get(self.camera, FULL)

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
    def video(self) -> Place:
        """The RGB video."""
        return sequence_folder(self.root, "HOI4D_release", self.name) / "align_rgb/image.mp4"

    @property
    def num_bytes(self) -> int:
        """Size of the video."""
        return file_size(self.video)

    @cached_property
    def annotations(self) -> Place:
        """Folder of the sequence's masks and action events."""
        return sequence_folder(self.root, "HOI4D_annotations", self.name)

    @property
    def actions(self) -> Place:
        """The action events."""
        return self.annotations / "action/color.json"

    @cached_property
    def mask_folder(self) -> Place:
        """Folder of the masks: the single sub-folder of `2Dseg`, `mask` or `shift_mask` after the camera.

        Raises:
            Fault: there is none, or there are both.
        """
        parent = self.annotations / "2Dseg"
        found = [parent / name for name in ("mask", "shift_mask") if (parent / name).is_dir()]
        if len(found) != 1:
            raise Fault("no-mask-folder", parent, f"holds {[path.name for path in found]}, expected mask or shift_mask")
        return found[0]

    @cached_property
    def num_frames(self) -> int:
        """Frames that the clip's clock runs over, even where its video has been cut short.

        Raises:
            Fault: the video cannot be opened, or there is no mask folder.
        """
        return max([count_frames(self.video), *self._mask_numbers()])

    def key(self, frame: int) -> str:
        """Sample key of a frame: no dots, no slashes."""
        return f"{self.name.replace('/', '_')}_f{frame:05d}"

    def moments(self) -> list[Moment]:
        """All frames; those outside contact events cannot be pairs.

        Raises:
            Fault: no video, no masks or no events.
        """
        return self._moments(self.num_frames)

    def mask(self, frame: int) -> Place:
        """Mask of a frame."""
        return self.mask_folder / f"{frame:05d}.png"

    def labels(self, frame: int) -> LabelMap:
        """Labels of a frame, background outside `valid`.

        Raises:
            Fault: no mask, or a bad one.
        """
        return read_labels(self.mask(frame), self.valid)

    def touched(self, labels: np.ndarray) -> tuple[Side, tuple[int, ...]] | None:
        """Find the hand whose pixels lie beside an object's, and that object."""
        return touched_by_reach(labels, self.hand_labels, self.objects)

    def hand_pose(self, frame: int, side: Side) -> Place | None:
        """Hand pickle of a frame, or None if there is none: only frames with a visible hand have one."""
        for folder, names in self._hand_files[side]:
            for name in (f"{frame}.pickle", f"{frame:05d}.pickle"):
                if name in names:
                    return folder / name
        return None

    def keypoints(self, frame: int, side: Side) -> np.ndarray | None:
        """Keypoints of a hand, None where it has no pickle.

        Raises:
            Fault: the pickle is broken.
        """
        path = self.hand_pose(frame, side)
        return None if path is None else read_keypoints(path)

    def pictures(self, frames: Collection[int]) -> Iterator[tuple[int, Picture | Fault]]:
        """Decode the video once, forward, as far as the last wanted frame.

        Raises:
            Fault: damaged, or over, from here on.
        """
        return read_frames(self.video, frames)

    def survey(self) -> Survey:
        """Tell what is there; the clip's length is what its masks say."""
        missing = [] if self.video.is_file() else ["no-video"]
        masks, contact = 0, 0
        try:
            numbers = list(self._mask_numbers())
            masks, num_frames = len(numbers), max(numbers, default=NUM_FRAMES)
            if masks < num_frames:
                missing.append("no-mask")
        except Fault as fault:
            num_frames = NUM_FRAMES
            missing.append(fault.reason)
        try:
            contact = sum(moment.fault is None for moment in self._moments(num_frames))
        except Fault as fault:
            missing.append(fault.reason)
        folders = [names for side in HAND_FOLDERS for _, names in self._hand_files[side]]
        poses = sum(len(list(frame_numbers(names, ".pickle"))) for names in folders)
        if not poses:
            missing.append("no-hand-pose")
        return Survey(self.camera, num_frames, masks, contact, poses, tuple(missing))

    @cached_property
    def _hand_files(self) -> dict[Side, list[tuple[Place, set[str]]]]:
        """Folders of hand pickles and the names in them."""
        return {
            side: [(folder, set(file_names(folder))) for folder in hand_folders(self.root, side, self.name)]
            for side in HAND_FOLDERS
        }

    def _mask_numbers(self) -> Iterator[int]:
        """1 + number of each mask."""
        return (number + 1 for number in frame_numbers(file_names(self.mask_folder), ".png"))

    def _moments(self, num_frames: int) -> list[Moment]:
        events = read_events(self.actions, num_frames)
        moments = []
        for frame in range(num_frames):
            event = event_at(events, frame)
            name = "" if event is None else event.name
            fault = None
            if event is None or event.kind != "contact":
                unknown = event is not None and event.kind == "unknown"
                fault = Fault("unknown-event" if unknown else "no-contact-event", self.actions, name)
            moments.append(Moment(frame, name, fault))
        return moments


@dataclass(frozen=True)
class HOI4D:
    """HOI4D as a `PairSource`: unpacked, zipped, or some of each.

    Attributes:
        root: folder that holds `HOI4D_release`, `HOI4D_annotations` and the hand poses, as folders or zips.
    """

    root: Path

    def find(self) -> tuple[list[Sequence], list[Drop]]:
        """List the clips: videos there that `release.txt`, where there is one, names too.

        Raises:
            InputError: no such folder, or no video in it.
        """
        sequences, left_out = find_sequences(self.root)
        drops = [Drop.of(Sequence(self.root, name), None, Fault(reason, path)) for name, reason, path in left_out]
        return sequences, drops

    def formats(self) -> dict[str, str]:
        """Folders or zips, which generation of hand poses, whether there is a list."""
        shapes = {"videos": self._shape("HOI4D_release"), "annotations": self._shape("HOI4D_annotations")}
        poses = []
        for archive in HAND_ARCHIVES:
            for number, generation in enumerate(("old", "new")):
                folder = self.root / archive / HAND_FOLDERS["right"][number]
                if folder.is_dir():
                    poses.append(f"{generation} generation, folder {folder.relative_to(self.root).as_posix()}")
            if archive and (self.root / f"{archive}.zip").is_file():
                generation = "old" if archive == "handpose" else "new"
                poses.append(f"{generation} generation, {archive}.zip")
        listing = "release.txt" if (self.root / "release.txt").is_file() else "none: every clip with a video is taken"
        return shapes | {"hand poses": "; ".join(poses) or "none: layouts come from the masks alone", "list": listing}

    def _shape(self, archive: Archive) -> str:
        place = find_archive(self.root, archive)
        if place == self.root:
            return "at the root itself"
        if place.is_file():
            return f"{place.name}, read in place"
        spare = self.root / f"{archive}.zip"
        return f"folder {place.name}" + (f"; {spare.name} beside it is not read" if spare.is_file() else "")


def find_sequences(root: Path) -> tuple[list[Sequence], list[tuple[str, str, Place]]]:
    """List the clips of a tree: videos there that `release.txt`, where there is one, names too.

    Returns:
        The sequences by name, and (name, reason, path) of each clip that only the disk or only the list has.

    Raises:
        InputError: no such folder, or no video in it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds HOI4D_release, as a folder or a zip")
    on_disk = list_videos(root)
    if not on_disk:
        raise InputError(
            f"{root}: no video at HOI4D_release/ZY*/H*/C*/N*/S*/s*/T*/align_rgb/image.mp4; put HOI4D_release.zip, "
            "HOI4D_annotations.zip and the hand poses there, unpacked or not, or run `python -m data_prep demo`"
        )
    listing = root / "release.txt"
    if not listing.is_file():
        return [Sequence(root, name) for name in sorted(on_disk)], []
    listed = {line.strip().strip("/") for line in listing.read_text().splitlines()} - {""}
    left_out: list[tuple[str, str, Place]] = [
        (name, "no-video", Sequence(root, name).video) for name in sorted(listed - on_disk)
    ]
    left_out += [(name, "not-listed", listing) for name in sorted(on_disk - listed)]
    return [Sequence(root, name) for name in sorted(on_disk & listed)], left_out
