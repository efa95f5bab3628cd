"""Walk over the samples of finished shards without unpacking them; what lies in a tar is not trusted."""

import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hoi_lightning.errors import InputError

MAX_BYTES = 1 << 27  # of one member; a larger one is refused before it is read

Complain = Callable[[str, str], None]  # of a sample's key, empty where the whole tar is meant, and what is wrong


@dataclass
class Record:
    """One sample's members in a tar that is open until the walk has gone on.

    Attributes:
        key: of the sample.
        file: descriptor of the tar.
        members: extension → (offset, size) in bytes.
    """

    key: str
    file: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, extension: str) -> bytes:
        """Contents of one member."""
        offset, size = self.members[extension]
        return os.pread(self.file, size, offset)

    def read_all(self) -> dict[str, bytes]:
        """Contents of all members by extension."""
        return {extension: self.read(extension) for extension in self.members}


def read_manifest(folder: Path, argument: str) -> dict[str, Any]:
    """Read a shard folder's manifest.

    Args:
        folder: what `build` wrote.
        argument: the command line's name for it.

    Raises:
        InputError: there is no such folder, no manifest in it, or it cannot be read.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        what = "no manifest.json there" if folder.is_dir() else "no such folder"
        raise InputError(f"{argument} {folder}: {what}; make shards with `python -m data_prep build`")
    try:
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest.get("shards"), list):
            raise ValueError("it lists no shards")
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a manifest of shards ({error}); rebuild with `make shards`") from None
    return manifest


def iter_records(path: Path, extensions: Collection[str], complain: Complain | None = None) -> Iterator[Record]:
    """Walk over a tar's samples in order.

    Args:
        path: of the tar.
        extensions: the closed table of members a sample may have here.
        complain: told of whatever is wrong, which is then passed over; None raises instead.

    Raises:
        InputError: the tar is damaged or holds something else, and `complain` is None.
    """

    def refuse(key: str, text: str) -> None:
        raise InputError(f"{path}{' ' * bool(key)}{key}: {text}; rebuild it with `make shards`")

    complain = complain or refuse
    pattern = re.compile(r"([^/.]+)\.(" + "|".join(map(re.escape, sorted(extensions))) + ")")
    record: Record | None = None
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                match = pattern.fullmatch(member.name)
                if not match or not member.isreg() or member.issparse():
                    complain("", f"member {member.name[:200]!r} is not part of a sample")
                    continue
                key, extension = match.groups()
                if member.size > MAX_BYTES:
                    complain(key, f"{extension} has {member.size} bytes, over {MAX_BYTES}")
                    continue
                if record is None or record.key != key:
                    if record is not None:
                        yield record
                    record = Record(key, file.fileno())
                if extension in record.members:
                    complain(key, f"{extension} comes twice")
                record.members[extension] = (member.offset_data, member.size)
            if record is not None:
                yield record
                record = None
    except (tarfile.TarError, OSError) as error:
        complain("", f"cannot be read to its end ({error})")
