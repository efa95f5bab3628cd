"""Where HOI4D's files lie: its archives unpacked side by side, merged into one tree, or still zipped."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from data_prep.hoi4d.classes import HAND_FOLDERS
from data_prep.sources import Side
from data_prep.zips import ZipPath, open_zip

Place = Path | ZipPath
Archive = Literal["HOI4D_release", "HOI4D_annotations"]
HAND_ARCHIVES = ("handpose", "Hand_pose", "HOI4D_Hand_pose", "")  # folders or zips; "" = at the root itself
SEQUENCE = re.compile(r"ZY\d+/H\d+/C\d+/N\d+/S\d+/s\d+/T\d+")


def find_archive(root: Path, archive: Archive) -> Path:
    """The archive's folder or zip, or the root where a user has merged the archives into one tree."""
    folder = root / archive
    if folder.is_dir():
        nested = folder / archive  # as some unpackers leave it
        return nested if nested.is_dir() else folder
    return folder.with_name(f"{archive}.zip") if folder.with_name(f"{archive}.zip").is_file() else root


def sequence_folder(root: Path, archive: Archive, sequence: str) -> Place:
    """A sequence's folder of an archive, whether it is there or not."""
    place = find_archive(root, archive)
    if not place.is_file():
        return place / sequence
    found = open_zip(place).folders.get(sequence)
    return ZipPath(place, found[0] if found else sequence)


def hand_folders(root: Path, side: Side, sequence: str) -> list[Place]:
    """A sequence's folders of hand pickles that are there, the older generation first."""
    found: list[Place] = []
    for archive in HAND_ARCHIVES:
        for folder in HAND_FOLDERS[side]:
            for place in (root / archive / folder / sequence, root / archive / archive / folder / sequence):
                if place.is_dir() and place not in found:
                    found.append(place)
        zipped = root / f"{archive}.zip"
        if archive and zipped.is_file():
            inside = open_zip(zipped).folders.get(sequence, [])
            ours = [name for name in inside if name.removesuffix(f"/{sequence}").split("/")[-1] in HAND_FOLDERS[side]]
            found += [ZipPath(zipped, name) for name in ours]
    return found


def list_videos(root: Path) -> set[str]:
    """Names of all sequences that have a video."""
    release = find_archive(root, "HOI4D_release")
    if release.is_file():
        archive = open_zip(release)
        found = {name: ZipPath(release, folders[0]) for name, folders in archive.folders.items()}
        return {name for name, folder in found.items() if (folder / "align_rgb/image.mp4").is_file()}
    videos = release.glob("ZY*/H*/C*/N*/S*/s*/T*/align_rgb/image.mp4")
    names = (path.parents[1].relative_to(release).as_posix() for path in videos)
    return {name for name in names if SEQUENCE.fullmatch(name)}


def file_names(folder: Place) -> list[str]:
    """Names of what lies in a folder; none where there is no such folder."""
    if isinstance(folder, ZipPath):
        return folder.names()
    try:
        return os.listdir(folder)
    except OSError:
        return []


def file_size(file: Place) -> int:
    """Bytes of a file; an OSError where there is none."""
    return file.size if isinstance(file, ZipPath) else file.stat().st_size


def frame_numbers(names: Iterable[str], suffix: str) -> Iterator[int]:
    """Numbers of the files that are named by one."""
    return (int(name.removesuffix(suffix)) for name in names if re.fullmatch(rf"\d+{re.escape(suffix)}", name))
