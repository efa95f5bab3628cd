"""Writing mask PNGs fast: rows unfiltered, compressed by ISA-L, and those that stay as they were only once."""

import struct
import zlib
from typing import Literal

import numpy as np
from isal import isal_zlib

Kind = Literal["grey", "rgb", "indexed"]

BAND = 60  # rows that are compressed together
_COLOUR_TYPE: dict[Kind, int] = {"grey": 0, "rgb": 2, "indexed": 3}


def blank_rows(height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Allocate a PNG's scan lines, all black.

    Returns:
        uint8 (height, 1 + width·channels), the lines with their filter byte, and a view of its pixels,
        uint8 (height, width, channels).
    """
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    return rows, rows[:, 1:].reshape(height, width, channels)


def encode_png(rows: np.ndarray, kind: Kind = "rgb", palette: np.ndarray | None = None) -> bytes:
    """Encode scan lines.

    Args:
        rows: uint8 (height, 1 + width·channels) as from `blank_rows`.
        kind: three channels, or one of grey levels or of places in the palette.
        palette: uint8 (N, 3), N ≤ 256, for `indexed`.
    """
    return _png(rows, isal_zlib.compress(rows, 1), kind, palette)


class Bands:
    """Encodes pictures that differ in some of their rows only.

    Args:
        rows: uint8 (height, 1 + width·3) as from `blank_rows`; they may be changed, and must be changed back.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self._starts = range(0, len(rows), BAND)
        self._kept = [self._deflated(start) for start in self._starts]

    def encode(self, changed: range) -> bytes:
        """Encode the rows as they are now, given the ones that are not what they were at first."""
        stream, check, end = bytearray(b"\x78\x01"), 1, b"\x03\x00"  # a zlib header, and an empty last block
        for start, kept in zip(self._starts, self._kept, strict=True):
            same = start + BAND <= changed.start or start >= changed.stop
            data, own = kept if same else self._deflated(start)
            stream += data
            check = _adler_of_both(check, own, self._rows[start : start + BAND].size)
        return _png(self._rows, bytes(stream + end + struct.pack(">I", check)), "rgb", None)

    def _deflated(self, start: int) -> tuple[bytes, int]:
        """A band's piece of a deflate stream, which refers to no other, and its checksum."""
        band = self._rows[start : start + BAND]
        compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
        return compressor.compress(band) + compressor.flush(isal_zlib.Z_FULL_FLUSH), isal_zlib.adler32(band)


def _adler_of_both(first: int, second: int, length: int) -> int:
    """The Adler-32 sum of two pieces of data together, the second one being `length` bytes long."""
    low = first % 65536 + second % 65536 - 1
    high = first // 65536 + second // 65536 + length * (first % 65536 - 1)
    return high % 65521 * 65536 + low % 65521


def _png(rows: np.ndarray, pixels: bytes, kind: Kind, palette: np.ndarray | None) -> bytes:
    height, width = rows.shape[0], (rows.shape[1] - 1) // (3 if kind == "rgb" else 1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[kind], 0, 0, 0)
    colours = b"" if palette is None else _chunk(b"PLTE", palette.tobytes())
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + colours + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
