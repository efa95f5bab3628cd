"""A small picture on which an object is painted by signed distances (negative inside, in units of its size).

World directions are east (right), near (towards the lower border, along the table) and up. The camera looks down at a
slant: `near` is foreshortened by `squash`, and what rises by 1 moves up the picture by `rise`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.mini.view import View

Shape = Sequence[float]  # an instance's eight parameters in [0, 1]

_COARSE = 4  # shadows are soft: they are painted on cells this many times larger
_SHADOW_ROOM = 0.8  # units round the object that its shadow may reach


@dataclass
class Painted:
    """A painted object and where it lies in the picture.

    Attributes:
        rgb: uint8 (H, W, 3), premultiplied by cover.
        cover: float32 (H, W) cover of the whole object, 0..1.
        handle: float32 (H, W) cover of its handle alone, 0..1; zeros where it has none.
        shadow: float32 (H, W) share of the light that it takes from the table, 0..1.
        left: the picture's column of the first column, may be negative.
        top: the picture's row of the first row, may be negative.
    """

    rgb: np.ndarray
    cover: np.ndarray
    handle: np.ndarray
    shadow: np.ndarray
    left: int
    top: int


class Canvas:
    """A window round an object.

    Attributes:
        x: float32 (1, W) units east of the object's centre, in the table's plane.
        y: float32 (H, 1) units near of it.
        u: float32 (H, W) the same along the object's own axis.
        v: float32 (H, W) the same across it.
        axis: the u axis in the table's plane: east, near.
        cells: cells per unit.
        squash: foreshortening of `near`.
        rise: how far one unit of height moves up the picture, units.
        drop: the same in the table's plane: what lies one unit lower appears this far nearer.
        sun: unit vector towards the light: east, near, up.
        fall: where a shadow lands per unit of height: east, near.
    """

    def __init__(self, reach: float, below: float, angle: float, cells: float, view: View) -> None:
        """Make an empty canvas.

        Args:
            reach: units from the centre to its left, right and upper border.
            below: units that it reaches further down, in the table's plane.
            angle: the u axis in the table's plane, radians, near = +π/2.
            cells: cells per unit.
            view: the camera.
        """
        self.cells, self.squash = cells, view.squash
        self.rise = float(np.sqrt(1 - view.squash**2))
        self.drop = self.rise / view.squash
        right, down, out = view.light.tolist()
        sun = np.array([right, down * self.squash + out * self.rise, out * self.squash - down * self.rise])
        half = sun + np.array([0, self.rise, self.squash])
        fall = -sun[:2] / max(float(sun[2]), 0.3)
        # Python floats, for a NumPy double would turn every float32 array that it meets into doubles
        self.sun: list[float] = sun.tolist()
        self._half: list[float] = (half / np.linalg.norm(half)).tolist()
        self.fall: list[float] = (fall * min(1.0, 0.55 / float(np.hypot(*fall)))).tolist()
        self.axis = math.cos(angle), math.sin(angle)
        self._reach, self._below = reach, below
        self.x, self.y = self._grid(cells, reach, below)
        self.u, self.v = self.turn(self.x, self.y)
        blank = np.zeros(self.u.shape, np.float32)
        self._rgb, self.cover, self.handle = np.stack([blank] * 3), blank, blank.copy()
        self.ground = self._grid(cells / _COARSE, reach + _SHADOW_ROOM, below)
        self._shadow = np.zeros((self.ground[1].shape[0], self.ground[0].shape[1]), np.float32)

    def _grid(self, cells: float, reach: float, below: float) -> tuple[np.ndarray, np.ndarray]:
        wide, up = int(np.ceil(reach * cells)), int(np.ceil(reach * cells * self.squash))
        down = int(np.ceil((reach + below) * cells * self.squash))
        x = (np.arange(-wide, wide, dtype=np.float32) + np.float32(0.5)) / np.float32(cells)
        y = (np.arange(-up, down, dtype=np.float32) + np.float32(0.5)) / np.float32(cells * self.squash)
        return x[None, :], y[:, None]

    def turn(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (u, v) of (x, y)."""
        cos, sin = self.axis
        return x * cos + y * sin, y * cos - x * sin

    def soft(self, distance: np.ndarray) -> np.ndarray:
        """1 where distance < 0, 0 where it is positive, with an edge of one cell."""
        return np.clip(np.float32(0.5) - distance * np.float32(self.cells), 0, 1)

    def paint(
        self,
        sdf: np.ndarray,
        colour: np.ndarray | tuple[float, float, float],
        light: np.ndarray | float = 1.0,
        gloss: np.ndarray | float = 0.0,
        opacity: float = 1.0,
        handle: bool = False,
    ) -> None:
        """Paint where sdf < 0.

        Args:
            sdf: (H, W) signed distance, units.
            colour: (3,), (3, 1, 1) or (3, H, W) RGB, 0..255.
            light: multiplies the colour.
            gloss: share of white laid over it, 0..1.
            opacity: 0..1.
            handle: whether it belongs to the object's handle.
        """
        share = self.soft(sdf).astype(np.float32, copy=False)
        if opacity < 1:
            share = share * np.float32(opacity)
        rows, columns = np.flatnonzero(share.max(axis=1)), np.flatnonzero(share.max(axis=0))
        if not rows.size:
            return
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        share = share[box]
        paint = np.asarray(colour, np.float32)
        paint = paint[:, None, None] if paint.ndim == 1 else paint[(slice(None), *_within(paint.shape[1:], box))]
        shaded = paint * _cut(light, box)
        if np.ndim(gloss) or gloss:
            shaded = shaded + _cut(gloss, box) * (255 - shaded)
        shaded = np.minimum(shaded, 255)
        rgb = self._rgb[(slice(None), *box)]
        rgb += share * (shaded - rgb)
        self.cover[box] += share * (1 - self.cover[box])
        self.handle[box] += share * (np.float32(handle) - self.handle[box])

    def veil(self, sdf: np.ndarray, white: np.ndarray) -> None:
        """Lay `white` (H, W), 0..1, over what is already painted where sdf < 0."""
        self._rgb += self.soft(sdf) * white * (255 * self.cover - self._rgb)

    def lambert(self, east: np.ndarray, near: np.ndarray, up: np.ndarray | float) -> np.ndarray:
        """Light on a surface with this unit normal, about 0.55..1.1."""
        facing = east * self.sun[0] + near * self.sun[1] + up * self.sun[2]
        return 0.57 + 0.49 * np.clip(facing, 0, 1) + 0.05 * up

    def glint(self, east: np.ndarray, near: np.ndarray, up: np.ndarray | float, sharp: float = 40.0) -> np.ndarray:
        """The light's reflection in a shiny surface with this unit normal, 0..1."""
        east_h, near_h, up_h = self._half
        return np.exp(sharp * (np.clip(east * east_h + near * near_h + up * up_h, 0, 1) - 1))

    def roll(self, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normal of a cylinder that lies along u; `share` is v over its radius, [-1, 1]."""
        share = np.clip(share, -1, 1)
        cos, sin = self.axis
        return -sin * share, cos * share, np.sqrt(1 - share * share)

    def streak(self, share: np.ndarray, sharp: float = 40.0) -> np.ndarray:
        """A highlight, 0..1, all along a cylinder that lies along u; `share` is v over its radius."""
        cos, sin = self.axis
        across = cos * self._half[1] - sin * self._half[0]
        length = math.hypot(across, self._half[2])
        share = np.clip(share, -1, 1)
        facing = (share * across + np.sqrt(1 - share * share) * self._half[2]) / length
        return np.exp(sharp * (facing - 1))

    def cast(self, sdf: np.ndarray, blur: float, strength: float = 1.0) -> None:
        """Add a shadow where sdf < 0, given on `ground`, with an edge `blur` units wide."""
        share = np.clip(np.float32(0.5) - sdf / np.float32(blur), 0, 1)
        self._shadow = np.maximum(self._shadow, np.float32(strength) * share * share * (3 - 2 * share))

    def place(self, centre: np.ndarray, size: float) -> Painted:
        """Bring it to the picture's pixels: the object's centre to `centre` (2,), its unit to `size` pixels."""
        room = self._reach + _SHADOW_ROOM
        left, top = (
            int(np.floor(centre[0] - room * size)),
            int(np.floor(centre[1] - room * size * self.squash)),
        )
        width = int(np.ceil(centre[0] + room * size)) - left
        height = int(np.ceil(centre[1] + (room + self._below) * size * self.squash)) - top

        def warp(cells: float, reach: float, image: np.ndarray) -> np.ndarray:
            scale = cells / size
            columns, rows = np.ceil(reach * cells), np.ceil(reach * cells * self.squash)
            shift_x = scale * (left + 0.5 - centre[0]) + columns - 0.5
            shift_y = scale * (top + 0.5 - centre[1]) + rows - 0.5
            matrix = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
            return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)

        layers = warp(self.cells, self._reach, cv2.merge([*self._rgb, self.cover]))
        rgb, cover = cv2.convertScaleAbs(layers[..., :3]), np.ascontiguousarray(layers[..., 3])
        handle = warp(self.cells, self._reach, self.handle) if self.handle.any() else np.zeros_like(cover)
        shadow = warp(self.cells / _COARSE, room, self._shadow)
        return Painted(rgb, cover, np.minimum(handle, cover), shadow, left, top)


def _within(shape: tuple[int, ...], box: tuple[slice, slice]) -> tuple[slice, ...]:
    """A window of the canvas, for an array that may have a single row or column."""
    return tuple(part if side > 1 else slice(None) for part, side in zip(box, shape, strict=True))


def _cut(values: np.ndarray | float, box: tuple[slice, slice]) -> np.ndarray | np.float32:
    if np.ndim(values) == 0:
        return np.float32(values)
    values = np.asarray(values)
    return values[_within(values.shape, box)].astype(np.float32, copy=False)


def circle(x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Signed distance to a circle round the origin."""
    return np.sqrt(x * x + y * y) - np.float32(radius)


def rounded_box(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float, corner: float) -> np.ndarray:
    """Signed distance to a box with round corners round the origin."""
    du, dv = np.abs(u) - np.float32(half_u - corner), np.abs(v) - np.float32(half_v - corner)
    outside = np.sqrt(np.square(np.maximum(du, 0)) + np.square(np.maximum(dv, 0)))
    return outside + np.minimum(np.maximum(du, dv), 0) - np.float32(corner)


def lay(picture: np.ndarray, painted: Painted, darkness: float = 0.5) -> None:
    """Lay a painted object and its shadow on a picture, in place.

    Args:
        picture: uint8 (H, W, 3).
        painted: the object.
        darkness: share of the table's light that its full shadow takes.
    """
    height, width = picture.shape[:2]
    x0, y0 = max(painted.left, 0), max(painted.top, 0)
    x1 = min(painted.left + painted.cover.shape[1], width)
    y1 = min(painted.top + painted.cover.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    own = (slice(y0 - painted.top, y1 - painted.top), slice(x0 - painted.left, x1 - painted.left))
    window = picture[y0:y1, x0:x1]
    kept = (1 - np.float32(darkness) * painted.shadow[own]) * (1 - painted.cover[own])
    cv2.multiply(window, cv2.merge([cv2.convertScaleAbs(kept, alpha=255)] * 3), dst=window, scale=1 / 255)
    cv2.add(window, painted.rgb[own], dst=window)
