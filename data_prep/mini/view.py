"""How the camera sees a clip's table: from above at a slant, near things larger, under one light."""

from dataclasses import dataclass

import numpy as np

SIZE = (1920, 1080)


@dataclass(frozen=True)
class View:
    """Camera and light of one clip.

    Attributes:
        squash: height over width of a circle that lies flat on the table, in (0, 1].
        nearness: relative growth of everything from the picture's middle row to its lowest, ≥ 0.
        light: (3,) unit vector towards the light, x right, y down, z towards the camera.
        tint: (3,) colour of the light, about 1.
    """

    squash: float
    nearness: float
    light: np.ndarray
    tint: np.ndarray

    def magnification(self, y: float) -> float:
        """Size of a thing that stands at pixel row y, over its size at the middle row."""
        half = SIZE[1] / 2
        return 1 + self.nearness * (y - half) / half


def draw_view(rng: np.random.Generator) -> View:
    """Draw a camera and a light."""
    azimuth = rng.uniform(0, 2 * np.pi)
    slant = np.radians(rng.uniform(30, 48))
    light = [np.sin(slant) * np.cos(azimuth), np.sin(slant) * np.sin(azimuth), np.cos(slant)]
    tint = rng.uniform(0.9, 1.06) * (1 + rng.normal(0, 0.016, 3))
    return View(
        squash=float(rng.uniform(0.8, 0.95)),
        nearness=float(rng.uniform(0.08, 0.2)),
        light=np.array(light, np.float32),
        tint=tint.astype(np.float32),
    )
