"""Painting a hand: tapered capsules, z-buffered, lit, with dark rims so that separate fingers can be told apart."""

from dataclasses import dataclass

import cv2
import numpy as np

Box = tuple[int, int, int, int]

_NEAR = 20.0  # pixels beyond a capsule in which it is still felt: rim shadow, blur
_MELT = 14.0  # pixels of height within which melting limbs mix


@dataclass(frozen=True, kw_only=True)
class Limb:
    """Capsules that melt into one another: a finger, the palm.

    Attributes:
        ends: (K, 2, 3) capsule axes, pixels and height.
        radii: (K, 2) radii at both ends, pixels.
        melts: (M, 3) points where the limb melts into a neighbour, and the radius, pixels, within which it has neither
            rim nor shadow.
        colour: (3,) RGB in 0..255.
        dimples: (N, 3) darker spots of skin over the joints: pixel and radius.
        nail: x, y, radius of the fingertip and (x, y) unit direction of its bone, or None.
    """

    ends: np.ndarray
    radii: np.ndarray
    melts: np.ndarray
    colour: np.ndarray
    dimples: np.ndarray
    nail: tuple[float, float, float, float, float] | None = None

    def surface(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed distance (negative inside) to the union of the capsules, and the height of its surface."""
        sdf = np.full((py.size, px.size), 1e3, np.float32)
        height = np.full_like(sdf, float(self.ends[..., 2].min()) - 2.5 * _NEAR)
        for (a, b), (ra, rb) in zip(self.ends.tolist(), self.radii.tolist(), strict=True):
            near = max(ra, rb) + _NEAR
            cols = slice(*np.searchsorted(px[0], (min(a[0], b[0]) - near, max(a[0], b[0]) + near)))
            rows = slice(*np.searchsorted(py[:, 0], (min(a[1], b[1]) - near, max(a[1], b[1]) + near)))
            dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
            rx, ry = px[:, cols] - a[0], py[rows] - a[1]
            t = (rx * dx + ry * dy) / (dx * dx + dy * dy + 1e-6)
            np.clip(t, 0, 1, out=t)
            far = np.sqrt(np.square(rx - t * dx) + np.square(ry - t * dy))
            r = ra + t * (rb - ra)
            away = far - r
            dome = np.sqrt(np.maximum(-away * (r + far), 0)) - 2.5 * np.maximum(away, 0)
            np.minimum(sdf[rows, cols], away, out=sdf[rows, cols])
            np.maximum(height[rows, cols], a[2] + t * dz + 0.85 * dome, out=height[rows, cols])
        return sdf, cv2.GaussianBlur(height, (0, 0), 0.1 * float(self.radii.max()) + 0.8)

    def loose(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """0 where the limb melts into its neighbour, 1 where it stands for itself."""
        loose = np.ones_like(x)
        for mx, my, reach in self.melts.tolist():
            far = np.sqrt(np.square(x - mx) + np.square(y - my))
            loose *= np.clip((far - reach) * (2 / reach), 0, 1)
        return loose

    def paint(self, x: np.ndarray, y: np.ndarray, lit: np.ndarray) -> np.ndarray:
        """RGB (N, 3) of pixels under the light `lit`, (N,)."""
        for cx, cy, radius in self.dimples.tolist():
            lit = lit * (1 - 0.13 * np.exp((np.square(x - cx) + np.square(y - cy)) * (-4.9 / radius**2)))
        colour = _skin(self.colour, lit)
        if self.nail is None:
            return colour
        nx, ny, radius, ax, ay = self.nail
        along, across = (x - nx) * ax + (y - ny) * ay, (x - nx) * ay - (y - ny) * ax
        flush = np.exp(-(along * along + across * across) / (2.4 * radius) ** 2)
        colour *= 1 - flush[:, None] * np.array([0.0, 0.1, 0.1], np.float32)
        oval = np.square(along / (0.85 * radius)) + np.square(across / (0.62 * radius))
        plate = np.clip((1.1 - oval) * 4, 0, 0.7)[:, None]
        return colour + plate * ((0.45 * self.colour + np.array([138, 115, 108], np.float32)) * lit[:, None] - colour)


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A straight limb cut square at its beginning: the forearm, or its sleeve.

    Attributes:
        start: (3,) where it begins, pixels and height.
        axis: (2,) unit direction.
        radii: radius at the start, at `elbow` and how much it grows per pixel beyond.
        elbow: pixels from the start.
        colour: (3,) RGB in 0..255.
        length: pixels it runs.
        cloth: folds and a hem.
        stripes: stripes across the cloth.
    """

    start: np.ndarray
    axis: np.ndarray
    radii: tuple[float, float, float]
    elbow: float
    colour: np.ndarray
    length: float = 1e4
    cloth: bool = False
    stripes: bool = False

    def surface(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed distance and height, as `Limb.surface`."""
        along, across = self._frame(px, py)
        first, at_elbow, growth = self.radii
        slope = (at_elbow - first) / self.elbow
        radius = first + slope * np.clip(along, 0, self.elbow) + growth * np.maximum(along - self.elbow, 0)
        away = np.abs(across) - radius
        sdf = np.maximum(away, np.maximum(-along, along - self.length))
        dome = 0.85 * np.sqrt(np.maximum(radius * radius - across * across, 0)) - 2 * np.maximum(sdf, 0)
        return sdf, float(self.start[2]) - 0.5 * radius + dome

    def loose(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """As `Limb.loose`; a sleeve stands out everywhere, a forearm only from its first pixels on."""
        return np.ones_like(x) if self.cloth else np.clip(self._frame(x, y)[0] / 20, 0, 1)

    def paint(self, x: np.ndarray, y: np.ndarray, lit: np.ndarray) -> np.ndarray:
        """As `Limb.paint`."""
        if not self.cloth:
            return _skin(self.colour, lit)
        along, across = self._frame(x, y)
        folds = 1 + 0.07 * np.sin(along * 0.085 + across * 0.05) + 0.05 * np.sin(along * 0.21 - across * 0.09)
        folds *= 1 - 0.35 * np.exp(-np.square((along - 14) / 2.5)) - 0.3 * np.exp(-np.square(along / 3))
        if self.stripes:
            folds *= 1 - 0.35 * (np.sin(along * 0.16) > 0.2)
        return self.colour * (lit * folds)[:, None]

    def _frame(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (sx, sy, _), (ax, ay) = self.start.tolist(), self.axis.tolist()
        rx, ry = px - sx, py - sy
        return rx * ax + ry * ay, rx * ay - ry * ax


class HandPainter:
    """A premultiplied RGBA layer over a window of the picture, with a height per pixel."""

    def __init__(self, window: Box, light: np.ndarray) -> None:
        """Start an empty layer.

        Args:
            window: x0, y0, x1, y1 in picture pixels.
            light: (3,) unit vector towards the light, z towards the camera.
        """
        self.window = window
        self.light = light.astype(np.float32)
        x0, y0, x1, y1 = window
        self.rgb = np.zeros((y1 - y0, x1 - x0, 3), np.float32)
        self.alpha = np.zeros((y1 - y0, x1 - x0), np.float32)
        self.height = np.full((y1 - y0, x1 - x0), -1e4, np.float32)

    def paint(self, limb: Limb | Tube, box: Box) -> None:
        """Paint the part of a limb that lies in a box x0, y0, x1, y1 of picture pixels."""
        x0, y0, x1, y1 = self.window
        left, top, right, bottom = max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)
        if right - left < 3 or bottom - top < 3:
            return
        # a pixel more all round, for the slopes
        px = np.arange(left - 1, right + 1, dtype=np.float32)[None, :] + np.float32(0.5)
        py = np.arange(top - 1, bottom + 1, dtype=np.float32)[:, None] + np.float32(0.5)
        sdf, height = limb.surface(px, py)
        slopes = [cv2.Sobel(height, cv2.CV_32F, *d, scale=0.125) for d in ((1, 0), (0, 1))]
        sdf, height, gx, gy = (np.ascontiguousarray(p[1:-1, 1:-1]) for p in (sdf, height, *slopes))
        px, py = px[0, 1:-1], py[1:-1, 0]
        view = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
        seen = self.height[view]
        edge = 6.0 if isinstance(limb, Limb) else 8.0  # width of the dark rim, pixels

        inside = sdf < 0.5
        under = self.alpha[view] > 0
        crowded = bool(under.any())
        if crowded:
            # what lies lower than a finger is darker beside it
            y, x = np.nonzero(under & (sdf < 3 * edge) & (seen < height + edge))
            dark = 0.55 * limb.loose(px[x], py[y]) * np.exp(-np.maximum(sdf[y, x], 0) / edge)
            self.rgb[view][y, x] *= 1 - dark[:, None]
            inside &= ~under | (height > seen - _MELT)

        y, x = np.nonzero(inside)
        here = y * len(px) + x
        away = sdf.ravel().take(here)
        loose = limb.loose(px[x], py[y])
        rim = np.maximum(1 + away / edge, 0)
        lit = self._lambert(gx.ravel().take(here), gy.ravel().take(here)) * (1 - 0.55 * loose * rim * rim)
        colour = np.clip(limb.paint(px[x], py[y], lit), 0, 255)
        cover = np.minimum(0.5 - away, 1)
        if crowded:
            rise = height.ravel().take(here) - seen[y, x]
            above = np.clip(rise / (1 + _MELT * (1 - loose)) + 0.85, 0, 1)
            cover *= np.where(under[y, x], above, 1)
        there = (y + (top - y0)) * (x1 - x0) + (x + (left - x0))
        self._over(there, colour, cover)
        np.maximum(seen, height, out=seen, where=sdf < 0)

    def _over(self, there: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> None:
        """Lay colours (N, 3) over the layer's pixels `there` (N,), counted row by row."""
        rgb, alpha = self.rgb.reshape(-1, 3), self.alpha.reshape(-1)
        behind = rgb.take(there, axis=0)
        rgb[there] = behind + cover[:, None] * (colour - behind)
        alpha[there] += cover * (1 - alpha.take(there))

    def _lambert(self, gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
        lx, ly, lz = self.light.tolist()
        return 0.42 + 0.68 * np.maximum((lz - lx * gx - ly * gy) / np.sqrt(1 + gx * gx + gy * gy), 0)


def _skin(colour: np.ndarray, lit: np.ndarray) -> np.ndarray:
    half = np.minimum(lit, 1)
    half = half * (1 - half)  # half-shaded skin is redder
    return np.stack([colour[0] * lit + 35 * half, colour[1] * lit, colour[2] * lit - 13 * half], axis=1)
