"""Painting a hand: tapered capsules, z-buffered, lit, with dark rims so that separate fingers can be told apart.

All lengths are pixels of the layer that is painted, which may be coarser than the picture.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

Box = tuple[int, int, int, int]
Mark = tuple[float, ...]  # x, y, the 2 × 2 matrix from pixels off (x, y) to 1 at the mark's edge, strength in [0, 1]

RIM_MM = 4.2  # width of the dark rim
_FELT_MM = 7.0  # beyond a capsule, its shadow and blur are still felt
_MELT_MM = 8.0  # of height, within which melting limbs mix
# a round tube of radius 1 at 256 places from side to side: its height, and how far it falls over two steps
_ACROSS = np.linspace(-1, 1, 256, dtype=np.float32)[None]
_BULGE = np.sqrt(1.0001 - _ACROSS * _ACROSS)
_FALL = 1.7 * _ACROSS / _BULGE


@dataclass(frozen=True, kw_only=True)
class Limb:
    """Capsules that melt into one another: a finger, the palm.

    Attributes:
        ends: (K, 2, 3) capsule axes, pixels and height.
        radii: (K, 2) radii at both ends, pixels.
        melts: (M, 3) points where the limb melts into a neighbour, and the radius, pixels, within which it has neither
            rim nor shadow.
        colour: (3,) RGB in 0..255.
        creases: pairs of dark lines over the joints, at -1 and 1 of each mark's first coordinate.
        nails: at most one.
        unit: pixels per millimetre.
        under: whether it passes behind the object.
    """

    ends: np.ndarray
    radii: np.ndarray
    melts: np.ndarray
    colour: np.ndarray
    creases: list[Mark]
    nails: list[Mark]
    unit: float
    under: bool = False

    def box(self) -> Box:
        """x0, y0, x1, y1 of what it can touch, pixels."""
        grow = self.radii.max() + _FELT_MM * self.unit
        low, high = self.ends[..., :2].min(axis=(0, 1)) - grow, self.ends[..., :2].max(axis=(0, 1)) + grow
        return int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1

    def surface(self, px: np.ndarray, py: np.ndarray, light: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signed distance (negative inside) to the union of the capsules, its height, and the light on it."""
        felt = _FELT_MM * self.unit
        sdf = np.full((py.size, px.size), 1e3, np.float32)
        height = np.full_like(sdf, float(self.ends[..., 2].min()) - 2.5 * felt)
        left, top = float(px[0, 0]), float(py[0, 0])
        for (a, b), (ra, rb) in zip(self.ends.tolist(), self.radii.tolist(), strict=True):
            near = max(ra, rb) + felt
            cols = slice(max(int(min(a[0], b[0]) - near - left), 0), max(int(max(a[0], b[0]) + near - left) + 1, 0))
            rows = slice(max(int(min(a[1], b[1]) - near - top), 0), max(int(max(a[1], b[1]) + near - top) + 1, 0))
            rx, ry = px[:, cols] - a[0], py[rows] - a[1]
            if not rx.size or not ry.size:  # this capsule lies beyond the picture's border
                continue
            dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
            squared = dx * dx + dy * dy + 1e-6
            t = rx * (dx / squared) + ry * (dy / squared)
            np.maximum(t, 0, out=t)
            np.minimum(t, 1, out=t)
            away = cv2.magnitude(rx - t * dx, ry - t * dy)
            r = ra + t * (rb - ra)
            dome = np.square(r)
            dome -= np.square(away)
            np.maximum(dome, 0, out=dome)
            np.sqrt(dome, out=dome)
            away -= r
            dome *= 0.85
            dome -= 2.5 * np.maximum(away, 0)
            dome += t * dz + a[2]
            np.minimum(sdf[rows, cols], away, out=sdf[rows, cols])
            np.maximum(height[rows, cols], dome, out=height[rows, cols])
        soft = 0.1 * float(self.radii.max()) + 0.5
        side = 2 * math.ceil(2 * soft) + 1
        height = cv2.GaussianBlur(height, (side, side), soft)
        dx, dy = (cv2.Sobel(height, -1, *axis, ksize=1, borderType=cv2.BORDER_REPLICATE) for axis in ((1, 0), (0, 1)))
        return sdf, height, _lambert(dx, dy, light)

    def loose(self, px: np.ndarray, py: np.ndarray) -> np.ndarray:
        """0 where the limb melts into its neighbour, 1 where it stands for itself."""
        loose = np.ones((py.size, px.size), np.float32)
        for mx, my, reach in self.melts.tolist():
            left, top, near = mx - float(px[0, 0]), my - float(py[0, 0]), 1.5 * reach
            cols = slice(max(int(left - near), 0), max(int(left + near) + 2, 0))
            rows = slice(max(int(top - near), 0), max(int(top + near) + 2, 0))
            far = np.square(px[:, cols] - mx) + np.square(py[rows] - my)
            far *= 0.8 / reach**2
            far -= 0.8
            loose[rows, cols] *= np.minimum(np.maximum(far, 0, out=far), 1, out=far)
        return loose

    def paint(self, px: np.ndarray, py: np.ndarray, lit: np.ndarray) -> np.ndarray:
        """RGB (3, H, W) of pixels under the light `lit`, (H, W), which may be changed."""
        for mark in self.creases:
            rows, cols, along, across = _square(mark, px, py, 1.8)
            along -= 1  # two lines
            np.square(along, out=along)
            along += across
            lit[rows, cols] *= 1 - mark[6] * np.exp(along * -1.6)
        colour = _skin(self.colour, lit)
        for mark in self.nails:
            rows, cols, along, across = _square(mark, px, py, 2.5)
            oval = along + across
            nail = colour[:, rows, cols]
            nail[1:] *= 1 - (0.13 * mark[6]) * np.exp(oval * -0.4)  # the skin around it is redder
            plate = np.minimum(np.maximum((1.1 - oval) * 3.5, 0), 0.75) * mark[6]
            pale = 0.5 * self.colour + np.array([128, 106, 98], np.float32)
            nail += plate * (pale[:, None, None] * (0.12 + 0.88 * lit[rows, cols]) - nail)
        return colour


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A straight limb cut square at its beginning: the forearm, or its sleeve.

    Attributes:
        start: (3,) where it begins, pixels and height.
        axis: (2,) unit direction.
        radii: radius at the start, at `elbow` and how much it grows per pixel beyond.
        elbow: pixels from the start.
        colour: (3,) RGB in 0..255.
        unit: pixels per millimetre.
        length: pixels it runs.
        cloth: folds and a hem.
        stripes: stripes across the cloth.
    """

    start: np.ndarray
    axis: np.ndarray
    radii: tuple[float, float, float]
    elbow: float
    colour: np.ndarray
    unit: float
    length: float = 1e4
    cloth: bool = False
    stripes: bool = False
    under: bool = False

    def touches(self, box: Box) -> bool:
        """Whether a box lies between the tube's two ends, at least partly."""
        (sx, sy, _), (ax, ay), felt = self.start.tolist(), self.axis.tolist(), 2 * RIM_MM * self.unit
        along = [(x - sx) * ax + (y - sy) * ay for x in box[::2] for y in box[1::2]]
        return max(along) > -felt and min(along) < self.length + felt

    def radius(self, along: np.ndarray) -> np.ndarray:
        """Radius at distances from the start, beyond which it grows more slowly than before."""
        first, at_elbow, growth = self.radii
        slope = (at_elbow - first) / self.elbow
        return np.minimum(slope * along + first, growth * along + (at_elbow - growth * self.elbow))

    def surface(self, px: np.ndarray, py: np.ndarray, light: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signed distance, height and light, as `Limb.surface`."""
        along, across = self._frame(px, py)
        radius = self.radius(along)
        sdf = np.abs(across)
        sdf -= radius
        middle = self.length / 2
        np.maximum(sdf, np.abs(along - middle) - middle, out=sdf)
        # all else depends on the place across it, which tables know
        place = cv2.convertScaleAbs(np.divide(across, radius, out=across), alpha=127.5, beta=127.5)
        ax, ay = self.axis.tolist()
        lit = _lambert(-ay * _FALL, ax * _FALL, light)
        height = cv2.LUT(place, 0.85 * _BULGE - 0.5)
        height *= radius
        height += float(self.start[2])
        return sdf, height, cv2.LUT(place, lit)

    def loose(self, px: np.ndarray, py: np.ndarray) -> np.ndarray:
        """As `Limb.loose`; a sleeve stands out everywhere, a forearm only from its first pixels on."""
        if self.cloth:
            return np.ones((py.size, px.size), np.float32)
        loose = self._frame(px, py)[0]
        loose *= 1 / (14 * self.unit)
        return np.minimum(np.maximum(loose, 0, out=loose), 1, out=loose)

    def paint(self, px: np.ndarray, py: np.ndarray, lit: np.ndarray) -> np.ndarray:
        """As `Limb.paint`."""
        if not self.cloth:
            return _skin(self.colour, lit)
        along, across = self._frame(px, py)
        along /= self.unit
        across /= self.unit
        folds = 1 + 0.07 * np.sin(along * 0.12 + across * 0.07) + 0.05 * np.sin(along * 0.3 - across * 0.13)
        folds *= 1 - 0.35 * np.exp(-np.square((along - 10) / 2)) - 0.3 * np.exp(-np.square(along / 2.2))
        if self.stripes:
            folds *= 1 - 0.35 * (np.sin(along * 0.23) > 0.2)
        lit *= folds
        return self.colour[:, None, None] * lit

    def _frame(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (sx, sy, _), (ax, ay) = self.start.tolist(), self.axis.tolist()
        rx, ry = px - sx, py - sy
        return rx * ax + ry * ay, rx * ay - ry * ax


class HandPainter:
    """A layer over a window.

    Attributes:
        window: x0, y0, x1, y1 in the layer's pixels.
        light: (3,) unit vector towards the light, z towards the camera.
        rgb: float32 (3, h, w), 0..255, premultiplied.
        clear: float32 (h, w), the share of a pixel that no limb covers.
        under: float32 (h, w), the share of it that `under` limbs cover.
        height: float32 (h, w), of what is seen.
    """

    def __init__(self, window: Box, light: np.ndarray) -> None:
        """Start an empty layer."""
        self.window, self.light = window, light
        x0, y0, x1, y1 = window
        self.rgb = np.zeros((3, y1 - y0, x1 - x0), np.float32)
        self.clear = np.ones((y1 - y0, x1 - x0), np.float32)
        self.under = np.zeros((y1 - y0, x1 - x0), np.float32)
        self.height = np.full((y1 - y0, x1 - x0), -1e4, np.float32)

    def paint(self, limb: Limb | Tube, box: Box) -> None:
        """Paint the part of a limb that lies in a box x0, y0, x1, y1."""
        x0, y0, x1, y1 = self.window
        left, top, right, bottom = max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)
        if right - left < 3 or bottom - top < 3:
            return
        px = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5)
        py = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        sdf, height, lit = limb.surface(px, py, self.light)
        edge = RIM_MM * limb.unit
        loose = limb.loose(px, py)
        rim = sdf * (1 / edge)
        rim += 1
        np.maximum(rim, 0, out=rim)
        np.minimum(rim, 1, out=rim)
        np.square(rim, out=rim)
        rim *= loose
        rim *= -0.55
        rim += 1
        lit *= rim
        cover = 0.5 - sdf
        np.maximum(cover, 0, out=cover)
        np.minimum(cover, 1, out=cover)
        window = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
        rgb, clear, under, seen = self.rgb[:, *window], self.clear[window], self.under[window], self.height[window]
        if clear.min() < 1:
            above = height - seen
            lower = above > -edge
            above /= 1 + _MELT_MM * limb.unit * (1 - loose)
            above += 0.85
            np.maximum(above, 0, out=above)
            np.minimum(above, 1, out=above)
            cover *= above
            # beside a limb, what lies lower is darker
            dark = cv2.exp(np.minimum(sdf * (-1 / edge), 0))
            dark *= loose
            dark *= lower
            dark *= -0.55
            dark += 1
            dark *= 1 - cover
            rgb *= dark
        rgb += limb.paint(px, py, lit) * cover
        kept = 1 - cover
        clear *= kept
        under *= kept
        if limb.under:
            under += cover
        cv2.copyTo(height, (cover > 0.5).view(np.uint8), seen)


def facing_mark(centre: list[float], along: list[float], across: list[float], strength: float) -> list[Mark]:
    """A flat oval on the skin, as the camera sees it.

    Args:
        centre: x, y and perhaps more, its centre, pixels.
        along: half its length as a vector in the picture, x and y.
        across: half its width, likewise.
        strength: in [0, 1], for how much it faces the camera; nothing is left of a mark that does not.
    """
    det = along[0] * across[1] - along[1] * across[0]
    if strength < 0.05 or abs(det) < 0.1:
        return []
    return [(*centre[:2], across[1] / det, -across[0] / det, -along[1] / det, along[0] / det, strength)]


def _square(mark: Mark, px: np.ndarray, py: np.ndarray, reach: float) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Rows and columns within `reach` of a mark, and there the squares of its own two coordinates."""
    x, y, a, b, c, d, _ = mark
    det = abs(a * d - b * c)
    wide, high = reach * math.hypot(b, d) / det, reach * math.hypot(a, c) / det
    left, top = x - float(px[0, 0]), y - float(py[0, 0])
    cols = slice(max(int(left - wide), 0), max(int(left + wide) + 2, 0))
    rows = slice(max(int(top - high), 0), max(int(top + high) + 2, 0))
    rx, ry = px[:, cols] - np.float32(x), py[rows] - np.float32(y)
    return rows, cols, np.square(a * rx + b * ry), np.square(c * rx + d * ry)


def _skin(colour: np.ndarray, lit: np.ndarray) -> np.ndarray:
    half = np.minimum(lit, 1)
    half -= half * half  # half-shaded skin is redder
    rgb = colour[:, None, None] * lit
    rgb[0] += 38 * half
    rgb[2] -= 12 * half
    return np.minimum(rgb, 255, out=rgb)


def _lambert(dx: np.ndarray, dy: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Light on a surface that rises by `dx` and `dy` over two pixels."""
    lx, ly, lz = (0.68 * light).tolist()
    steep = dx * dx
    steep += dy * dy
    steep += 4
    np.sqrt(steep, out=steep)
    facing = cv2.addWeighted(dx, -lx, dy, -ly, 2 * lz)
    facing /= steep
    np.maximum(facing, 0, out=facing)
    facing += 0.42
    return facing
