"""Masks: labels by exact colour."""

import cv2
import numpy as np

from data_prep.hoi4d.classes import HEIGHT, PALETTE, WIDTH
from data_prep.sources import Box, Fault, File

UNKNOWN_LABEL = 255


def read_labels(path: File, valid: Box) -> np.ndarray:
    """Read a mask's labels by exact colour.

    Indexed PNGs are read as the RGB picture they show, those of one grey channel as the labels themselves. Pixels
    outside `valid` are background.

    Args:
        path: the PNG.
        valid: rectangle that holds picture.

    Returns:
        uint8 (1080, 1920), 0 to 9.

    Raises:
        Fault: missing, undecodable, of another size, or more than 0.1 % of it in colours outside the palette.
    """
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
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR)
    channels = 1 if pixels.ndim == 2 else 3
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    left, top, width, height = cv2.boundingRect(pixels.reshape(HEIGHT, WIDTH * channels))
    x0, y0 = max(left // channels, valid[0]), max(top, valid[1])
    x1, y1 = min(-(-(left + width) // channels), valid[2]), min(top + height, valid[3])
    if x0 >= x1 or y0 >= y1:
        return labels
    window = pixels[y0:y1, x0:x1]
    if channels == 1:
        found = cv2.LUT(window, _LABEL_OF_GREY)
    else:
        # Each channel's four levels become one digit of a base-4 code; another level saturates the sum at 255.
        code = cv2.transform(cv2.LUT(window, _DIGITS), np.ones((1, 3), np.float32))
        found = cv2.LUT(code, _LABEL_OF_CODE)
    unknown = found == UNKNOWN_LABEL
    num_unknown = np.count_nonzero(unknown)
    if num_unknown > 1e-3 * WIDTH * HEIGHT:
        raise Fault("bad-mask", path, f"{num_unknown} pixels in colours outside HOI4D's palette")
    found[unknown] = 0
    labels[y0:y1, x0:x1] = found
    return labels


def _code_tables() -> tuple[np.ndarray, np.ndarray]:
    digits = np.full((1, 256, 3), 255, np.uint8)
    for channel, weight in enumerate((1, 4, 16)):  # blue, green, red
        digits[0, [0, 64, 128, 192], channel] = weight * np.arange(4)
    label_of_code = np.full(256, UNKNOWN_LABEL, np.uint8)
    for label, (red, green, blue) in enumerate(PALETTE):
        label_of_code[red // 64 * 16 + green // 64 * 4 + blue // 64] = label
    return digits, label_of_code


_DIGITS, _LABEL_OF_CODE = _code_tables()
_LABEL_OF_GREY = np.full(256, UNKNOWN_LABEL, np.uint8)
_LABEL_OF_GREY[: len(PALETTE)] = np.arange(len(PALETTE))
