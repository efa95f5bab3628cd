"""Shards that nobody should trust: hostile members, damaged tars, malformed pictures."""

import hashlib
import io
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHARD = "train-000001.tar"
SIDE = 64

Members = list[tuple[tarfile.TarInfo, bytes]]


class Canary:
    """Unpickling one leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def read_members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def write_members(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def agree(folder: Path, name: str = SHARD, **entry: Any) -> None:
    """Let the manifest say what a shard's bytes are now: damage that was there when it was built."""
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / name).read_bytes()
    about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | entry
    next(shard for shard in manifest["shards"] if shard["name"] == name).update(about)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(folder: Path, change: Callable[[Members], Members | None], form: int = tarfile.USTAR_FORMAT) -> None:
    """Change the members of the second training shard; the manifest agrees."""
    members = read_members(folder / SHARD)
    write_members(folder / SHARD, change(members) or members, form)
    agree(folder)


def replace_member(extension: str, data: bytes) -> Callable[[Members], Members]:
    """Give the third sample another member."""

    def change(members: Members) -> Members:
        key = keys(members)[2]
        return [(info, data if info.name == f"{key}.{extension}" else old) for info, old in members]

    return change


def keys(members: Members) -> list[str]:
    return list(dict.fromkeys(info.name.partition(".")[0] for info, _ in members))


def hostile(canary: Path) -> dict[str, tuple[Callable[[Members], Members], str]]:
    """Name → what is done to a shard's members, and what the refusal says."""
    code = pickle.dumps(Canary(canary))
    add = lambda *one: lambda members: [*members, member(*one)]  # noqa: E731
    return {
        "pickle": (add("ZY.cls.pkl", code), "'ZY.cls.pkl' is not part of"),
        "pyd": (add("ZY.pyd", code), "'ZY.pyd' is not part of"),
        "pipe": (add("pipe:touch x.json", b"{}"), "'pipe:touch x.json' is not part of"),
        "parent": (add("../x.json", b"{}"), "'../x.json' is not part of"),
        "absolute": (add("/etc/x.json", b"{}"), "'/etc/x.json' is not part of"),
        "gzip": (add("ZY.hoi.jpg.gz", zlib.compress(bytes(50_000_000), 9)), "'ZY.hoi.jpg.gz' is not part of"),
        "symbolic link": (add("ZY.hoi.jpg", b"", tarfile.SYMTYPE, "/etc/passwd"), "'ZY.hoi.jpg' is a symbolic link"),
        "hard link": (add("ZY.hoi.jpg", b"", tarfile.LNKTYPE, "x"), "'ZY.hoi.jpg' is a hard link"),
        "device": (add("ZY.hoi.jpg", b"", tarfile.CHRTYPE), "'ZY.hoi.jpg' is a device"),
        "named pipe": (add("ZY.hoi.jpg", b"", tarfile.FIFOTYPE), "'ZY.hoi.jpg' is a pipe"),
        "folder": (add("ZY", b"", tarfile.DIRTYPE), "'ZY/' is a folder"),
        "member twice": (lambda members: [members[0], *members], "comes twice"),
        "sample in two places": (lambda members: [*members[1:], members[0]], "comes twice"),
        "newline": (add("Z\nY.json", b"{}"), "not part of"),
        "backslash": (add("..\\x.json", b"{}"), "not part of"),
    }


def png(width: int, height: int, rows: bytes, depth: int = 1, colour: int = 0, interlace: int = 0) -> bytes:
    """A PNG of any header and content."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">II5B", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture(mode: str, kind: str, size: tuple[int, int] = (SIDE, SIDE), **options: Any) -> bytes:
    """A noise picture as Pillow writes it."""
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = rng.integers(0, 256, (size[1], size[0], bands), np.uint8)
    image = (
        Image.frombytes(mode, size, noise.tobytes()) if mode in ("L", "RGB", "RGBA", "CMYK") else Image.new(mode, size)
    )
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bad_jpegs() -> dict[str, bytes]:
    """Files that are no RGB JPEG of the right size."""
    good = picture("RGB", "JPEG", quality=95)
    huge = bytearray(good)
    at = huge.index(b"\xff\xc0")
    huge[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    return {
        "empty": b"",
        "text": b"not a picture",
        "cut": good[: len(good) // 2],
        "header only": good[:200],
        "a PNG": picture("RGB", "PNG"),
        "CMYK": picture("CMYK", "JPEG"),
        "one pixel": picture("RGB", "JPEG", (1, 1)),
        "not square": picture("RGB", "JPEG", (SIDE, SIDE // 2)),
        "larger": picture("RGB", "JPEG", (2 * SIDE, 2 * SIDE)),
        "claims to be huge": bytes(huge),
    }


def bad_pngs() -> dict[str, bytes]:
    """Files that are no mask of the right size; torchvision's decoder crashes on `short`."""
    rows = bytes(SIDE * (1 + SIDE // 8))
    good = png(SIDE, SIDE, rows)
    flipped = bytearray(good)
    flipped[60] ^= 1
    return {
        "empty": b"",
        "text": b"not a picture",
        "short": png(SIDE, SIDE, rows[:100]),
        "short grey": png(SIDE, SIDE, rows[:100], depth=8),
        "short RGB": png(SIDE, SIDE, rows[:100], depth=8, colour=2),
        "long": png(SIDE, SIDE, rows * 2),
        "cut": good[:-20],
        "flipped bit": bytes(flipped),
        "unknown filter": png(SIDE, SIDE, b"\x09" + rows[1:]),
        "bomb": png(60_000, 60_000, bytes(1000)),
        "inflates without end": png(SIDE, SIDE, bytes(100_000_000)),
        "no pixels": png(0, 0, b""),
        "a JPEG": picture("RGB", "JPEG"),
        "one pixel": png(1, 1, b"\0\0"),
        "larger": png(2 * SIDE, 2 * SIDE, bytes(2 * SIDE * (1 + SIDE // 4))),
    }
