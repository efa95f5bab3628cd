"""A small picture on which an object is painted by signed distances (negative inside, in pixels)."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Canvas:
    """A square window round an object.

    Attributes:
        x: (1, W) pixels right of the object's centre.
        y: (H, 1) pixels below it.
        u: (H, W) the same along the object's own axis.
        v: (H, W) the same across it.
        axis: (2,) the u axis in the picture.
        light: (3,) unit vector towards the light, z towards the camera.
        rgb: (H, W, 3) colours, 0..255.
        alpha: (H, W) cover, 0..1.
    """

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    axis: np.ndarray
    light: np.ndarray
    rgb: np.ndarray
    alpha: np.ndarray

    @classmethod
    def create(cls, half: int, offset: tuple[float, float], angle: float, light: np.ndarray) -> "Canvas":
        """An empty canvas of side 2 × half.

        Args:
            half: half its side, pixels.
            offset: (2,) the object's centre within the canvas's central pixel, [0, 1).
            angle: the u axis in the picture, radians, +y down.
            light: (3,) unit vector towards the light.
        """
        x = np.arange(-half, half, dtype=np.float32)[None, :] + np.float32(0.5 - offset[0])
        y = np.arange(-half, half, dtype=np.float32)[:, None] + np.float32(0.5 - offset[1])
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        blank = np.zeros((2 * half, 2 * half), np.float32)
        axis = np.array([cos, sin], np.float32)
        return cls(x, y, x * cos + y * sin, y * cos - x * sin, axis, light, np.stack([blank] * 3, axis=-1), blank)

    def paint(self, sdf: np.ndarray, colour: np.ndarray, light: np.ndarray | float = 1.0, opacity: float = 1.0) -> None:
        """Paint where sdf < 0, with a soft edge; `light` multiplies the (3,) colour pixel by pixel."""
        cover = np.clip(0.5 - sdf, 0, 1) * np.float32(opacity)
        shaded = np.asarray(colour, np.float32) * np.asarray(light, np.float32)[..., None]
        self.rgb += cover[..., None] * (shaded - self.rgb)
        self.alpha = np.maximum(self.alpha, np.clip(0.5 - sdf, 0, 1))

    def lambert(self, nx: np.ndarray, ny: np.ndarray) -> np.ndarray:
        """Light on a surface whose unit normal has picture components (nx, ny), about 0.35..1.1."""
        nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))
        lx, ly, lz = self.light.tolist()
        return 0.42 + 0.72 * np.clip(nx * lx + ny * ly + nz * lz, 0, 1)

    def roll(self, share: np.ndarray) -> np.ndarray:
        """Light on a cylinder along the u axis; `share` is v over its radius, [-1, 1]."""
        share = np.clip(share, -1, 1)
        return self.lambert(-self.axis[1] * share, self.axis[0] * share)

    def shine(self, share: np.ndarray, width: float = 0.12) -> np.ndarray:
        """A highlight line along a cylinder, 0..1, on the side of the light."""
        side = float(np.clip(-self.axis[1] * self.light[0] + self.axis[0] * self.light[1], -0.6, 0.6))
        return np.exp(-np.square((share - side) / width))


def circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to a circle round the origin."""
    return np.sqrt(x * x + y * y) - np.float32(radius)


def rounded_box(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float, corner: float) -> np.ndarray:
    """Signed distance to a box with round corners round the origin."""
    du, dv = np.abs(u) - (half_u - corner), np.abs(v) - (half_v - corner)
    outside = np.sqrt(np.square(np.maximum(du, 0)) + np.square(np.maximum(dv, 0)))
    return outside + np.minimum(np.maximum(du, dv), 0) - np.float32(corner)
