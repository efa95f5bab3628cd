"""Walks over one tar from a stranger and lists its samples: where each member lies, and what its record says.

Only plain files of the closed table are let in, in no folder, once each, a sample's members together; anything else is
refused by name, whatever the settings: it was not damage that put it there. What damage can do (a cut, a flipped bit, a
member or record that is wrong) is a `Fault` of a sample, which `on_error: skip` leaves out.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hoi_lightning.data.sample import MEMBERS, SampleInfo, decode, decode_info
from hoi_lightning.errors import InputError

BLOCK = 512
MAX_BYTES = 1 << 25  # of one member; no JPEG of 4096 x 4096 comes near
LATENTS_MEMBERS = (MEMBERS["latents"],)
IMAGE_MEMBERS = (*(name for name in MEMBERS.values() if name not in LATENTS_MEMBERS), "json")

_MEMBER = re.compile(r"([\w-]+)\.(" + "|".join(map(re.escape, [*MEMBERS.values(), "json"])) + ")")
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe",
    b"S": "a sparse file", b"x": "an extended header", b"g": "an extended header", b"L": "an extended header",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Something damaged.

    Attributes:
        shard: name of the tar.
        key: of the sample; empty where it is not known.
        reason: in words.
        samples: how many are lost.
    """

    shard: str
    key: str
    reason: str
    samples: int = 1

    def __str__(self) -> str:
        return f"{self.shard}{f', sample {self.key}' if self.key else ''}: {self.reason}"


@dataclass
class Found:
    """One sample of a tar.

    Attributes:
        key: of the sample.
        row: its place in the tar, damaged samples counted too.
        members: extension → offset and size in bytes.
        info: its record; None in a tar without records.
    """

    key: str
    row: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    info: SampleInfo | None = None


class Damaged(ValueError):
    """A tar cannot be walked on."""


def scan(path: Path, entry: dict[str, Any], wanted: Sequence[str]) -> tuple[list[Found], list[Fault]]:
    """List the sound samples of a tar, and what is wrong with the others.

    Args:
        path: the tar.
        entry: what the manifest says of it.
        wanted: extensions of its kind of tar, `IMAGE_MEMBERS` or `LATENTS_MEMBERS`.

    Raises:
        InputError: there is no such file, or it holds what no HO3Pairs tar may hold.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait for its writer
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); copy the shard again") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: is no plain file; copy the shard again")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        samples: dict[str, Found] = {}
        faults = []
        current = None
        try:
            for name, offset, size in walk(descriptor, path):
                current = _take(samples, current, path, name, (offset, size))
        except Damaged as error:
            key = current.key if current else ""
            samples.pop(key, None)  # nobody knows whether it is whole
            faults.append(Fault(path.name, key, str(error), 0))  # the count below says how many
        sound = [sample for sample in samples.values() if _read_record(sample, descriptor, path, wanted, faults)]
        if len(samples) != entry["count"]:
            reason = f"holds {len(samples)} samples, manifest.json says {entry['count']}"
            faults.append(Fault(path.name, "", reason, abs(entry["count"] - len(samples))))
        if digest != entry["sha256"] and not faults:
            faults += _undecodable(sound, descriptor, path)
            bad = {fault.key for fault in faults}
            sound = [sample for sample in sound if sample.key not in bad]
            if not faults:
                faults.append(Fault(path.name, "", "its sha256 is not the manifest's, though all of it decodes"))
    return sound, faults


def walk(descriptor: int, path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each member of a ustar file.

    Raises:
        Damaged: the tar breaks off, or a header's checksum is wrong.
        InputError: a member is no plain file, or too large.
    """
    length = os.fstat(descriptor).st_size
    position = 0
    while True:
        header = os.pread(descriptor, BLOCK, position)
        if header == bytes(BLOCK) and os.pread(descriptor, BLOCK, position + BLOCK) == bytes(BLOCK):
            return
        if len(header) < BLOCK or header == bytes(BLOCK):
            raise Damaged("is cut off, the tar's end is missing")
        if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise Damaged(f"a tar header's checksum is wrong at byte {position}")
        name = header[:100].split(b"\0")[0].decode("utf-8", "backslashreplace")
        kind, magic = header[156:157], header[257:262]
        if kind not in (b"0", b"\0") or magic != b"ustar":
            raise InputError(
                f"{path}: member {name!r} is {_KINDS.get(kind, 'no plain file')}, which no HO3Pairs shard holds; "
                "do not use this shard"
            )
        if header[345:346] != b"\0" and header[262:263] == b"\0":
            name = header[345:500].split(b"\0")[0].decode("utf-8", "backslashreplace") + "/" + name
        size = _octal(header[124:136])
        if size is None or size > MAX_BYTES:
            raise InputError(f"{path}: member {name!r} has {size} bytes, over {MAX_BYTES}; do not use this shard")
        if position + BLOCK + size > length:
            raise Damaged(f"is cut off inside {name!r}")
        yield name, position + BLOCK, size
        position += BLOCK + -(-size // BLOCK) * BLOCK


def _take(samples: dict[str, Found], current: Found | None, path: Path, name: str, place: tuple[int, int]) -> Found:
    """Enter a member; returns its sample."""
    match = _MEMBER.fullmatch(name)
    if not match:
        raise InputError(f"{path}: member {name[:200]!r} is not part of an HO3Pairs sample; do not use this shard")
    key, extension = match.groups()
    if current is None or current.key != key:
        if key in samples:
            raise InputError(f"{path}: sample {key} comes twice; do not use this shard")
        current = samples[key] = Found(key, len(samples))
    if extension in current.members:
        raise InputError(f"{path}: member {name} comes twice; do not use this shard")
    current.members[extension] = place
    return current


def _read_record(sample: Found, descriptor: int, path: Path, wanted: Sequence[str], faults: list[Fault]) -> bool:
    """Read a sample's record, where its tar has records; False where it is wrong."""
    if "json" not in wanted:
        missing = [name for name in wanted if name not in sample.members]
        if missing:
            faults.append(Fault(path.name, sample.key, f"member {missing[0]} is missing"))
        return not missing
    try:
        sample.info = decode_info(_read(sample, descriptor, ["json"]))
        layout = sample.info.layout.to_tensor().numpy()
        if sample.info.key != sample.key:
            raise InputError(f"its json is that of {sample.info.key!r:.200}")
        if not isinstance(sample.info.category, str) or not np.isfinite(layout).all() or layout[0] <= 0:
            raise InputError("its category or layout is none")
        points = sample.info.keypoints
        if points is not None and np.asarray(points, np.float32).shape != (21, 2):
            raise InputError("its keypoints are not 21 points")
    except (InputError, TypeError, ValueError, OverflowError) as error:
        faults.append(Fault(path.name, sample.key, str(error)))
        return False
    return True


def _undecodable(samples: list[Found], descriptor: int, path: Path) -> list[Fault]:
    faults = []
    for sample in samples:
        try:
            if sample.info is not None:
                names = list(sample.members)
                decode(_read(sample, descriptor, names), [f for f, name in MEMBERS.items() if name in names])
        except InputError as error:
            faults.append(Fault(path.name, sample.key, str(error)))
    return faults


def _read(sample: Found, descriptor: int, names: list[str]) -> dict[str, bytes]:
    places = {name: sample.members[name] for name in names if name in sample.members}
    return {name: os.pread(descriptor, size, offset) for name, (offset, size) in places.items()}


def _octal(text: bytes) -> int | None:
    digits = text.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None
