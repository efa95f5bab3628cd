"""Holes of any shape: what is wrong with one, where it lies, and how what was painted in it gets into the picture."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hoi_lightning.errors import InputError
from hoi_lightning.window import ZOOM_FACTOR, Box, square_about, square_holding


def check_hole(name: str, hole: np.ndarray, picture: str, width: int, height: int) -> None:
    """Refuse what is no hole in a picture.

    Args:
        name: of the hole, for the message.
        hole: bool (H, W), True = to be painted.
        picture: its name, for the message.
        width: of the picture.
        height: of the picture.

    Raises:
        InputError: it has another size, values that are not bool, or nothing or everything is to be painted.
    """
    if hole.shape != (height, width):
        found = "x".join(str(length) for length in hole.shape[::-1])
        raise InputError(f"{name}: {found}, but {picture} is {width}x{height}; give a hole of the same size")
    if hole.dtype != bool:
        raise InputError(f"{name}: holds {hole.dtype}, not bool; threshold it, as in `hole > 127`")
    if not hole.any():
        raise InputError(f"{name}: is empty, nothing would be painted; make white (True) what is to be painted")
    if hole.all():
        raise InputError(f"{name}: covers the whole picture, nothing would be kept; make black (False) what is to stay")


def check_holes(painter: str, obj: Tensor, hole: Tensor, multiple: int) -> None:
    """Refuse what a painter cannot paint.

    Args:
        painter: its name, for the message.
        obj: pictures (B, 3, H, W).
        hole: (B, 1, H, W) of {0, 1}.
        multiple: what sides must be multiples of.

    Raises:
        InputError: pictures have such sides, or holes another size or other values.
    """
    height, width = obj.shape[-2:]
    check_sides(painter, height, width, multiple)
    if hole.shape != (len(obj), 1, height, width):
        raise InputError(f"holes {tuple(hole.shape)}: pictures {tuple(obj.shape)} want one channel of their size")
    if hole.dtype == torch.bool:
        raise InputError("holes: bool; give them as the pictures' type, 1 = to be painted")
    if not ((hole == 0) | (hole == 1)).all():
        raise InputError("holes: values other than 0 and 1; threshold them first")


def check_sides(painter: str, height: int, width: int, multiple: int) -> None:
    """Refuse sides that a painter's autoencoder does not take.

    Raises:
        InputError: with the nearest size that it does.
    """
    if height % multiple or width % multiple:
        nearest = f"{max(1, round(width / multiple)) * multiple}x{max(1, round(height / multiple)) * multiple}"
        raise InputError(
            f"pictures of {width}x{height}: {painter} paints sides that are multiples of {multiple}; resize to "
            f"{nearest}"
        )


def square_of(name: str, hole: np.ndarray, given: Box | None = None) -> Box:
    """The square of the picture that a painter of a hole sees: the given one, or the largest, near the middle.

    Raises:
        InputError: the hole, bool (H, W), reaches beyond it.
    """
    box = _box(hole)
    height, width = hole.shape
    square = given or square_holding(box, width, height)
    if box[0] < square[0] or box[1] < square[1] or box[2] > square[2] or box[3] > square[3]:
        remedy = "paint it in parts" if given is None else "leave out --box and --centre (`window`)"
        raise InputError(f"{name}: reaches from {box[:2]} to {box[2:]}, beyond the square {list(square)}; {remedy}")
    return square


def zoom_square(hole: np.ndarray, square: Box, least: int) -> Box:
    """The part of a square that a painter sees closely: a smaller one about the hole, with a margin.

    Args:
        hole: bool (H, W) of the picture; an empty one has no neighbourhood.
        square: that the hole lies in.
        least: pixels of its side, where the square has them.
    """
    if not hole.any():
        return square
    left, top, right, _ = square
    x0, y0, x1, y1 = _box(hole)
    side = right - left
    near = square_about((x0 - left, y0 - top, x1 - left, y1 - top), side, side, ZOOM_FACTOR, least)
    return near[0] + left, near[1] + top, near[2] + left, near[3] + top


def to_side(hole: np.ndarray, side: int) -> Tensor:
    """A square hole at another resolution, float (1, side, side) of {0, 1}: a pixel is in it as soon as a part is."""
    return F.adaptive_max_pool2d(torch.from_numpy(hole).float()[None], side)


def feather(hole: Tensor, width: float = 0.02) -> Tensor:
    """Weights of the painted picture: 0 outside the hole, rising to 1 over `width` of the side inside it.

    Where a hole is narrow they rise sooner: over a quarter of its width at most.

    Args:
        hole: (B, 1, S, S) of {0, 1}; at the picture's border it goes on.
        width: share of the side.
    """
    reach = max(1, round(width * hole.shape[-1]))
    inner, outer = _depth(hole, 3 * reach), _depth(1 - hole, 3 * reach)
    # from pixel to pixel an outline goes in steps, which show as teeth where light meets shade: smoothed, as a distance
    # that is signed, it stays where it is
    signed, kernel = inner - outer + 0.5 - hole, reach // 2 * 2 + 1
    for _ in range(2):  # sums of halves are exact in whatever order
        padded = F.pad(signed, (kernel // 2,) * 4, mode="replicate")
        signed = F.avg_pool2d(padded, kernel, stride=1, divisor_override=1)
    smooth = torch.maximum(signed / kernel**4 + 0.5, 0.1 * inner)  # about a thread there is but outside
    depth = hole * smooth.clamp(max=2 * reach)
    half_width = _spread(depth, 2 * reach)
    ramp = (depth / (half_width / 2).clamp(min=1e-6)).clamp(max=1)
    return ramp * ramp * (3 - 2 * ramp)  # level at both ends: no step for the eye at the outline


def _depth(region: Tensor, most: int) -> Tensor:
    """Pixels from the outline: 0 outside the region, 1 at its rim, at most `most`."""
    depth, eroded = region, region
    for _ in range(most - 1):
        eroded = 1 - _spread(1 - eroded, 1)
        depth = depth + eroded
    return depth


def _spread(x: Tensor, reach: int) -> Tensor:
    """Maxima over squares of side 2·reach + 1, one axis after the other: in a large picture they are large."""
    for kernel in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        x = F.max_pool2d(x, kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2))
    return x


def paste(picture: np.ndarray, hole: np.ndarray, square: Box, painted: np.ndarray) -> np.ndarray:
    """A picture with what was painted of its square, in the hole; every other byte stays.

    Args:
        picture: uint8 (H, W, 3).
        hole: bool (H, W), inside the square.
        square: what the painter saw.
        painted: uint8 (S, S, 3), faded in over the hole's rim if S is the square's side.
    """
    part = slice(square[1], square[3]), slice(square[0], square[2])
    inside, side, size = hole[part], square[2] - square[0], painted.shape[0]
    # At the painter's own size it has blended already; else the two holes differ by up to one of its pixels.
    weight = inside if side == size else _feather(inside, side / size + 1)
    known, new = picture[part][inside], resize(painted, side)[inside].astype(np.float32)  # (pixels of the hole, 3)
    result = picture.copy()
    result[part][inside] = (known + weight[inside, None] * (new - known)).round().astype(np.uint8)
    return result


def resize(picture: np.ndarray, side: int) -> np.ndarray:
    """A square picture, uint8 (S, S, 3), at another resolution."""
    if picture.shape[0] == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))  # antialiased


def _box(hole: np.ndarray) -> Box:
    columns, rows = np.flatnonzero(hole.any(axis=0)), np.flatnonzero(hole.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _feather(inside: np.ndarray, reach: float) -> np.ndarray:
    """`feather` of a hole, bool (S, S), over `reach` pixels; of a large picture only the hole's part is worked on."""
    weight = np.zeros(inside.shape, np.float32)
    if not inside.any():
        return weight
    x0, y0, x1, y1 = _box(inside)
    rim = math.ceil(reach) + 1  # outside the outline, which is smoothed
    near = slice(max(0, y0 - rim), y1 + rim), slice(max(0, x0 - rim), x1 + rim)
    hole = torch.from_numpy(inside[near]).float()[None, None]
    weight[near] = feather(hole, reach / hole.shape[-1])[0, 0].numpy()
    return weight
