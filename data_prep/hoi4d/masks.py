"""Masks: labels by exact colour."""

import cv2
import numpy as np

from data_prep.hoi4d.classes import HEIGHT, PALETTE, WIDTH
from data_prep.labels import LabelMap, bounding_box
from data_prep.sources import Box, Fault, File

UNKNOWN_LABEL = 255
_BLOCK = 8  # side in pixels of the blocks that are looked at whole: their rows are machine words
_LOW_BITS = 0x3F3F3F3F3F3F3F3F  # zero in all colours of the palette


def read_labels(path: File, valid: Box) -> LabelMap:
    """Read a mask's labels by exact colour.

    Indexed PNGs are read as the RGB picture they show, those of one grey channel as the labels themselves. Pixels
    outside `valid` are background.

    Args:
        path: the PNG.
        valid: rectangle that holds picture.

    Returns:
        Labels 0 to 9 of a frame of 1920x1080.

    Raises:
        Fault: missing, undecodable, of another size, or more than 0.1 % of it in colours outside the palette.
    """
    pixels = _decode(path)
    channels = 1 if pixels.ndim == 2 else 3
    words = pixels.reshape(HEIGHT // _BLOCK, _BLOCK, -1).view(np.uint64)
    blocks = np.bitwise_or.reduce(words, axis=1)  # one pass over all the memory: most of it is black
    filled = bounding_box(blocks != 0)
    if filled is None:
        return LabelMap(np.zeros((_BLOCK, _BLOCK), np.uint8), (0, 0), (WIDTH, HEIGHT))
    x0, y0 = filled[0] // channels * _BLOCK, filled[1] * _BLOCK
    x1, y1 = -(-filled[2] // channels) * _BLOCK, filled[3] * _BLOCK
    window = pixels[y0:y1, x0:x1]
    if channels == 1:
        labels = cv2.LUT(window, _LABEL_OF_GREY)
    else:
        # The top bits of red, green and blue, two by two in one byte.
        packed = cv2.cvtColor(window, cv2.COLOR_BGR2BGR565).view(np.uint16)[..., 0]
        packed |= packed >> 8
        labels = cv2.LUT(packed.astype(np.uint8), _LABEL_OF_CODE)
        if np.bitwise_or.reduce(blocks, axis=None) & _LOW_BITS:
            labels[(window & 0x3F).any(-1)] = UNKNOWN_LABEL
    inside = np.s_[max(valid[1] - y0, 0) : max(valid[3] - y0, 0), max(valid[0] - x0, 0) : max(valid[2] - x0, 0)]
    if labels[inside].shape != labels.shape:
        cut = np.zeros_like(labels)
        cut[inside] = labels[inside]
        labels = cut
    if labels.max(initial=0) == UNKNOWN_LABEL:
        unknown = labels == UNKNOWN_LABEL
        num_unknown = np.count_nonzero(unknown)
        if num_unknown > 1e-3 * WIDTH * HEIGHT:
            raise Fault("bad-mask", path, f"{num_unknown} pixels in colours outside HOI4D's palette")
        labels[unknown] = 0
    return LabelMap(labels, (x0, y0), (WIDTH, HEIGHT))


def _decode(path: File) -> np.ndarray:
    """Pixels of a mask, uint8 (1080, 1920) or, blue first, (1080, 1920, 3)."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError:
        raise Fault("no-mask", path) from None
    except OSError as error:
        raise Fault("bad-mask", path, error.strerror or "") from None
    # Not IMREAD_COLOR: converting to colours would make grey of label numbers.
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None or pixels.dtype != np.uint8:
        raise Fault("bad-mask", path, "cannot be decoded" if pixels is None else "is not an 8-bit picture")
    if pixels.shape[:2] != (HEIGHT, WIDTH):
        raise Fault("bad-mask", path, f"is {pixels.shape[1]}x{pixels.shape[0]}, expected {WIDTH}x{HEIGHT}")
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR) if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels


def _label_of_code() -> np.ndarray:
    table = np.full(256, UNKNOWN_LABEL, np.uint8)
    for label, (red, green, blue) in enumerate(PALETTE):
        table[red // 64 << 6 | green // 64 << 1 | blue // 64 << 3] = label
    return table


_LABEL_OF_CODE = _label_of_code()
_LABEL_OF_GREY = np.full(256, UNKNOWN_LABEL, np.uint8)
_LABEL_OF_GREY[: len(PALETTE)] = np.arange(len(PALETTE))
