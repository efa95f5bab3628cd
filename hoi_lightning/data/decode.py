"""Decoders of single members; the bytes may be a stranger's, and what is wrong with them is a `ValueError`.

JPEGs are decoded by libjpeg-turbo, which releases the interpreter lock, straight into a batch. Masks are 1-bit PNGs
with unfiltered rows, as `encode_mask` writes them: they are inflated and unpacked, in a quarter of the time that Pillow
takes. Any other PNG goes through Pillow, which survives the malformed ones that crash faster decoders.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import simplejpeg
from PIL import Image

MAX_SIDE = 4096  # of a stored picture in pixels; a larger one is refused before it is decoded

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ONE_BIT = bytes([1, 0, 0, 0, 0])  # IHDR behind the sides: depth 1, grey, deflate, standard filters, not interlaced


def jpeg_into(data: bytes | memoryview, out: np.ndarray) -> None:
    """Decode an RGB JPEG into uint8 (S, S, 3), contiguous.

    Raises:
        ValueError: it is no JPEG, damaged, or of another size.
    """
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in ("YCbCr", "Gray", "RGB"):
        raise ValueError(f"is {colours}, not RGB")
    if (height, width) != out.shape[:2]:
        raise ValueError(f"is {width}x{height}, the manifest says {out.shape[1]}x{out.shape[0]}")
    simplejpeg.decode_jpeg(data, "RGB", buffer=out)


def mask_into(data: bytes | memoryview, out: np.ndarray) -> None:
    """Decode a mask into bool (S, S).

    Raises:
        ValueError: it is no PNG, damaged, or of another size.
    """
    mask = decode_mask(data)
    if mask.shape != out.shape:
        raise ValueError(f"is {mask.shape[1]}x{mask.shape[0]}, the manifest says {out.shape[1]}x{out.shape[0]}")
    out[:] = mask


def encode_mask(mask: np.ndarray, deflate: Callable[[bytes], bytes] = zlib.compress) -> bytes:
    """Write a bool mask (H, W) as a 1-bit PNG with unfiltered rows."""
    height, width = mask.shape
    rows = np.packbits(mask, axis=1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">II", width, height) + _ONE_BIT
    chunks = ((b"IHDR", header), (b"IDAT", deflate(raw)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def decode_mask(data: bytes | memoryview) -> np.ndarray:
    """Read a PNG mask as bool (H, W), at most `MAX_SIDE` a side; what is not 1-bit is cut at half.

    Raises:
        ValueError: it is no PNG, damaged or too large.
    """
    data = bytes(data)
    if len(data) < 33 or data[:8] != _SIGNATURE or data[12:16] != b"IHDR":
        raise ValueError("is no PNG")
    width, height = struct.unpack_from(">II", data, 16)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"is {width}x{height}, over {MAX_SIDE} pixels a side")
    if data[24:29] == _ONE_BIT:
        pitch = 1 + (width + 7) // 8
        raw = _inflate(data, height * pitch)
        rows = np.frombuffer(raw, np.uint8).reshape(height, pitch)
        if not rows[:, 0].any():
            return np.unpackbits(rows[:, 1:], axis=1, count=width).view(bool)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("L")) > 127
    except Exception as error:  # whatever a decoder makes of a stranger's bytes is that file's fault
        raise ValueError(f"cannot be decoded ({error})") from None


def latents_into(data: bytes | memoryview, out: Mapping[str, np.ndarray]) -> None:
    """Read a safetensors file of float16 arrays into those of the same names; the file may lack `sdedit`.

    Raises:
        ValueError: it is damaged, or its arrays are others than expected.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(bytes(data)))
    except SafetensorError as error:
        raise ValueError(f"cannot be read ({error})") from None
    for name, array in out.items():
        if name == "sdedit" and name not in tensors:
            array[:] = out["obj"]
            continue
        tensor = tensors.get(name, {"dtype": "nothing", "shape": []})
        if tensor["dtype"] != "F16" or tuple(tensor["shape"]) != array.shape:
            raise ValueError(f"{name} is {tensor['dtype']} {tensor['shape']}, expected F16 {list(array.shape)}")
        array[:] = np.frombuffer(tensor["data"], np.float16).reshape(array.shape)


def _inflate(data: bytes, size: int) -> bytes:
    """Contents of a PNG's IDAT chunks, which must be `size` bytes; checksums are compared."""
    packed, position, kind = [], 8, b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise ValueError("is cut off")
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            raise ValueError("is cut off")
        if zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError("is damaged: a chunk's checksum is wrong")
        if kind == b"IDAT":
            packed.append(data[position + 8 : end - 4])
        position = end
    try:
        raw = zlib.decompressobj().decompress(b"".join(packed), size + 1)
    except zlib.error as error:
        raise ValueError(f"is damaged ({error})") from None
    if len(raw) != size:
        raise ValueError(f"is damaged: {len(raw)} bytes of {size}")
    return raw
