"""Reading members of very large zips by name.

HOI4D's annotations are 1.8 million small files. Python's own `zipfile` holds about a kilobyte for each of them in
every process; here only the places of whole folders are held, and a folder's members are read when one is asked for.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hoi_lightning.errors import InputError

_CHUNK = 1 << 22
_END, _END64_LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_CENTRAL, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_SIZES = struct.Struct("<3H")  # of a header's name, extra field and comment
_MAX_HEADER = _CENTRAL.size + 3 * 0xFFFF
_FULL32 = 0xFFFFFFFF


class Member(NamedTuple):
    """Where a member lies in its zip and how it is packed."""

    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


@dataclass(frozen=True)
class ZipPath:
    """A file or folder in a zip; it stands in for a `pathlib.Path` as far as reading goes.

    Attributes:
        archive: the zip.
        inside: path in it, without a slash at the end.
    """

    archive: Path
    inside: str

    def __truediv__(self, part: str) -> "ZipPath":
        """Join."""
        return ZipPath(self.archive, f"{self.inside}/{part}")

    def __str__(self) -> str:
        """`archive.zip!member`."""
        return f"{self.archive}!{self.inside}"

    @property
    def name(self) -> str:
        """Last component."""
        return PurePosixPath(self.inside).name

    @property
    def stem(self) -> str:
        """Last component without its suffix."""
        return PurePosixPath(self.inside).stem

    @property
    def size(self) -> int:
        """Bytes of the file when unpacked; an OSError where there is none."""
        return self._member().size

    def is_file(self) -> bool:
        """Whether the zip holds it as a file."""
        return self.inside in open_zip(self.archive).members(self.inside)

    def is_dir(self) -> bool:
        """Whether the zip holds anything below it."""
        return any(name.startswith(f"{self.inside}/") for name in open_zip(self.archive).members(self.inside))

    def names(self) -> list[str]:
        """Names of the files directly in it."""
        start = len(self.inside) + 1
        below = open_zip(self.archive).members(self.inside)
        return [n[start:] for n in below if n.startswith(f"{self.inside}/") and "/" not in n[start:]]

    def read_bytes(self) -> bytes:
        """Unpack the file.

        Raises:
            OSError: there is none, or it is damaged.
        """
        return open_zip(self.archive).read(self._member())

    def relative_to(self, root: Path, /) -> PurePosixPath:
        """`archive.zip!member`, the archive seen from `root`."""
        return PurePosixPath(f"{self.archive.relative_to(root).as_posix()}!{self.inside}")

    def _member(self) -> Member:
        try:
            return open_zip(self.archive).members(self.inside)[self.inside]
        except KeyError:
            raise FileNotFoundError(2, "not in the zip", str(self)) from None


def open_zip(path: Path) -> "Zip":
    """Open a zip, or return it as opened before; its list is read once per process.

    Raises:
        InputError: it is no complete zip.
    """
    status = path.stat()
    return _open_zip(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _open_zip(path: Path, size: int, mtime_ns: int) -> "Zip":
    return Zip(path)


class Zip:
    """The folders of a zip that match a pattern, and their members.

    Args:
        path: the zip.

    Attributes:
        folders: by their name at the end of the path, each path that ends so; `ZY…/H1/C2/N04/S12/s03/T1` for HOI4D.
    """

    FOLDER = re.compile(r"(?:.*/)?(ZY\d+/H\d+/C\d+/N\d+/S\d+/s\d+/T\d+)(?=/)")  # HOI4D's sequences

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: dict[str, list[str]] = {}
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._start, self._length, self._shift = self._find_list()
        self._scan()
        self.members_of = lru_cache(maxsize=16)(self._members_of)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def members(self, inside: str) -> dict[str, Member]:
        """All files of the folder that a path belongs to, by their paths; empty where there is no such folder."""
        match = self.FOLDER.match(f"{inside}/")
        return self.members_of(match[0]) if match else {}

    def read(self, member: Member) -> bytes:
        """Unpack a member.

        Raises:
            OSError: it is damaged or packed in an unknown way.
        """
        header = os.pread(self._descriptor, _LOCAL.size, member.offset + self._shift)
        if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
            raise OSError(5, "damaged in the zip")
        *_, name, extra = _LOCAL.unpack(header)
        begin = member.offset + self._shift + _LOCAL.size + name + extra
        data = b"".join(self._chunks(begin, member.packed))
        if member.flags & 1 or member.method not in (0, 8):
            raise OSError(5, "encrypted or packed by an unknown method; unpack the zip")
        try:
            data = zlib.decompressobj(-15).decompress(data, member.size + 1) if member.method else data
        except zlib.error:
            raise OSError(5, "damaged in the zip") from None
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise OSError(5, "damaged in the zip")
        return data

    def _find_list(self) -> tuple[int, int, int]:
        """Begin and length of the zip's list of members, and what must be added to its offsets."""
        size = os.fstat(self._descriptor).st_size
        tail_at = max(0, size - _END.size - 0xFFFF)
        tail = os.pread(self._descriptor, size - tail_at, tail_at)
        found = tail.rfind(b"PK\5\6")
        broken = InputError(f"{self.path}: not a complete zip; fetch it again, or join its parts, or unpack it")
        if found < 0 or found + _END.size > len(tail):
            raise broken
        end = tail_at + found
        _, disk, _, _, _, length, offset, _ = _END.unpack_from(tail, found)
        locator = os.pread(self._descriptor, _END64_LOCATOR.size, end - _END64_LOCATOR.size) if end >= 76 else b""
        if locator[:4] == b"PK\6\7":
            end -= _END64_LOCATOR.size + _END64.size
            record = os.pread(self._descriptor, _END64.size, end)
            if record[:4] != b"PK\6\6":
                raise broken
            *_, length, offset = _END64.unpack(record)
        elif disk or offset == _FULL32 or length == _FULL32:
            raise broken
        begin = end - length
        if begin < offset:
            raise broken
        return begin, length, begin - offset

    def _scan(self) -> None:
        """Find the spans of the folders in the list; a folder's members usually lie together."""
        folder, current = "", b"\0"
        for at, buffer, position, name_size in self._headers(self._start, self._length):
            if buffer.startswith(current, position + _CENTRAL.size):
                if name_size > len(current):
                    self._spans[folder][-1] = (self._spans[folder][-1][0], at)
                continue
            name = buffer[position + _CENTRAL.size :][:name_size].decode("utf-8", "replace")
            match = self.FOLDER.match(name)
            if match is None or name.startswith("__MACOSX/"):
                folder, current = "", b"\0"
                continue
            folder, current = match[0], f"{match[0]}/".encode()
            spans = self._spans.setdefault(folder, [])
            if not spans:
                self.folders.setdefault(match[1], []).append(folder)
            spans.append((at, at))

    def _members_of(self, folder: str) -> dict[str, Member]:
        members = {}
        for first, last in self._spans.get(folder, []):
            length = min(last - first + _MAX_HEADER, self._start + self._length - first)
            for at, buffer, position, name_size in self._headers(first, length):
                if at > last:
                    break
                _, _, _, flags, method, _, _, crc, packed, size, _, extra_size, _, _, _, _, offset = (
                    _CENTRAL.unpack_from(buffer, position)
                )
                begin = position + _CENTRAL.size
                name = buffer[begin : begin + name_size].decode("utf-8", "replace")
                if name.endswith("/"):
                    continue
                extra = buffer[begin + name_size : begin + name_size + extra_size]
                size, packed, offset = _wide(extra, size, packed, offset)
                members[name] = Member(flags, method, crc, packed, size, offset)
        return members

    def _headers(self, begin: int, length: int) -> Iterator[tuple[int, bytes, int, int]]:
        """Walk along the list: place of each header in the file, a buffer, its place there, length of its name."""
        buffer, base, position = b"", begin, 0
        stop = begin + length
        while base + position < stop:
            if position + _MAX_HEADER > len(buffer) and base + len(buffer) < stop:
                base, position = base + position, 0
                buffer = os.pread(self._descriptor, min(_CHUNK, stop - base), base)
            name_size, extra, comment = _SIZES.unpack_from(buffer, position + 28)
            if buffer[position : position + 4] != b"PK\1\2":
                raise InputError(f"{self.path}: its list of members is damaged; fetch it again or unpack it")
            yield base + position, buffer, position, name_size
            position += _CENTRAL.size + name_size + extra + comment

    def _chunks(self, begin: int, length: int) -> Iterator[bytes]:
        while length > 0:  # a single read gives at most 2 GB
            chunk = os.pread(self._descriptor, length, begin)
            if not chunk:
                return
            yield chunk
            begin, length = begin + len(chunk), length - len(chunk)


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Replace the values that need more than 32 bits by those in the extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            size, packed, offset = (next(values, v) if v == _FULL32 else v for v in (size, packed, offset))
        extra = extra[4 + length :]
    return size, packed, offset
