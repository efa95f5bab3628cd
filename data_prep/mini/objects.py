"""The objects on the table: each category a painter, each instance a set of parameters.

An object's shape and colours belong to (seed, category, instance); its place, rotation and size to the clip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.mini import carried, lying, props, vessels
from data_prep.mini.canvas import Canvas, Painted, Shape
from data_prep.mini.view import View

__all__ = ["CATEGORIES", "INSTANCES", "Painted", "Thing", "draw_looks", "draw_thing", "paint_thing"]

INSTANCES = 45
CATEGORIES = {1: "ToyCar", 2: "Mug", 5: "Bottle", 7: "Bowl", 8: "Bucket", 12: "Kettle", 13: "Knife"}  # HOI4D's ids

_MAX_CELLS = 80.0  # per unit: a crop of 2.6 times the object at 512 pixels shows about as many

# smallest and largest size in pixels at the middle row
SIZES = {
    "Mug": (80, 98),
    "Bottle": (132, 158),
    "Bowl": (104, 128),
    "Bucket": (128, 152),
    "Kettle": (100, 118),
    "Knife": (140, 164),
    "ToyCar": (108, 130),
}

# colours as they occur in kitchens and toy boxes, weighted by repetition
_CERAMIC = [
    (242, 240, 234), (246, 244, 240), (228, 222, 208), (206, 208, 206), (60, 64, 72), (40, 42, 48), (54, 78, 120),
    (98, 146, 170), (150, 196, 206), (176, 206, 184), (92, 128, 104), (238, 196, 196), (206, 92, 84), (176, 48, 46),
    (222, 160, 66), (240, 214, 128), (128, 84, 62), (190, 130, 96), (170, 152, 190), (74, 132, 132),
]  # fmt: skip
_PLASTIC = [
    (240, 118, 150), (244, 172, 190), (226, 60, 74), (214, 42, 50), (48, 110, 190), (120, 180, 226), (240, 200, 60),
    (246, 152, 50), (92, 172, 96), (160, 208, 140), (236, 238, 238), (60, 62, 68), (150, 110, 180), (70, 176, 176),
]  # fmt: skip
_WOOD = [(120, 76, 48), (86, 54, 38), (168, 118, 76), (60, 40, 32)]
_PALETTES = {
    "Mug": [*_CERAMIC, *_CERAMIC[:4], _PLASTIC[1], _PLASTIC[5]],
    "Bottle": [*_PLASTIC, *_CERAMIC[:3], *_CERAMIC[7:10]],
    "Bowl": [*_CERAMIC, *_WOOD, *_PLASTIC[:3]],
    "Bucket": _PLASTIC,
    "Plate": [*_CERAMIC[:4], *_CERAMIC[:4], _CERAMIC[8], _CERAMIC[9]],
    "Kettle": [*_CERAMIC, *_PLASTIC[2:5]],
}


@dataclass(frozen=True)
class Thing:
    """One object lying in a clip.

    Attributes:
        category: clean category name.
        centre: (2,) pixel of its centre; of a vessel, the centre of its rim.
        angle: direction of its axis in the table's plane, radians, +π/2 towards the lower border: a mug's handle, a
            bottle's cap, a knife's handle, a car's rear.
        size: radius of a round object, half length of a long one, pixels.
        shape: (8,) instance parameters in [0, 1].
        colours: (3, 3) RGB, 0..255: main, second, accent.
        squash: foreshortening of the table's plane.
    """

    category: str
    centre: np.ndarray
    angle: float
    size: float
    shape: np.ndarray
    colours: np.ndarray
    squash: float

    def point(self, u: float, v: float) -> np.ndarray:
        """A point of the object in the picture, (2,) pixels: u, v in units of `size` along and across its axis."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.centre + self.size * np.array([u * cos - v * sin, self.squash * (u * sin + v * cos)])


@dataclass(frozen=True)
class _Painter:
    """How a category is painted.

    Attributes:
        paint: paints it on a canvas, given shape, colours and a generator of the object's looks.
        reach: units from its centre to its farthest point, shadow apart.
        below: units that it may reach further towards the lower border.
    """

    paint: Callable[[Canvas, Shape, np.ndarray, np.random.Generator], None]
    reach: float
    below: float = 0.1


PAINTERS: dict[str, _Painter] = {
    "Mug": _Painter(vessels.paint_mug, 1.5, 1.0),
    "Bowl": _Painter(vessels.paint_bowl, 1.02, 0.5),
    "Plate": _Painter(vessels.paint_plate, 1.02),
    "Bucket": _Painter(carried.paint_bucket, 1.12, 1.0),
    "Kettle": _Painter(carried.paint_kettle, 1.76, 0.4),
    "Bottle": _Painter(lying.paint_bottle, 1.03),
    "Knife": _Painter(lying.paint_knife, 1.03),
    "ToyCar": _Painter(lying.paint_car, 1.15, 0.3),
    **{name: _Painter(paint, 1.25, 0.5) for name, paint in props.PAINTERS.items()},
}


def draw_looks(seed: int, category: str, instance: int) -> tuple[np.ndarray, np.ndarray]:
    """Shape (8,) and colours (3, 3) of an instance."""
    number = list(PAINTERS).index(category)
    own = np.random.default_rng(np.random.SeedSequence([seed, 7, number, instance]))
    return own.random(8), _colours(category, own)


def draw_thing(seed: int, category: int, instance: int, rng: np.random.Generator, view: View) -> Thing:
    """Lay an instance on the table: `rng` decides its place and size, (seed, category, instance) its looks."""
    name = CATEGORIES[category]
    shape, colours = draw_looks(seed, name, instance)
    low, high = SIZES[name]
    centre = np.array([rng.uniform(700, 1220), rng.uniform(400, 620)])
    size = (low + (high - low) * shape[0]) * rng.uniform(0.94, 1.06) * view.magnification(float(centre[1]))
    angle = rng.uniform(0, 2 * np.pi)
    if name in ("Mug", "Kettle", "Knife"):  # whoever put it there turned the handle towards the person
        angle = np.pi / 2 + np.radians(rng.uniform(-100, 100))
    elif name == "Bucket":  # the bail points somewhere along the arm that will lift it
        angle = np.radians(rng.uniform(-50, 50)) + np.pi * rng.integers(2)
    return Thing(name, centre, float(angle), float(size), shape, colours, view.squash)


def paint_thing(thing: Thing, view: View) -> Painted:
    """Paint an object and its shadow."""
    painter = PAINTERS[thing.category]
    canvas = Canvas(painter.reach, painter.below, thing.angle, min(_MAX_CELLS, thing.size), view)
    looks = np.random.default_rng((thing.shape * 2**31).astype(np.int64))
    painter.paint(canvas, thing.shape.tolist(), thing.colours * view.tint, looks)
    return canvas.place(thing.centre, thing.size)


def _colours(category: str, rng: np.random.Generator) -> np.ndarray:
    """Main, second and accent colour: the second stands out from the main one."""
    palette = np.array(_PALETTES.get(category, _PLASTIC + _CERAMIC), np.float32)
    main = palette[rng.integers(len(palette))]
    others = np.array(_CERAMIC + _PLASTIC, np.float32)
    others = others[np.abs(others - main).sum(axis=1) > 130]
    second, accent = others[rng.choice(len(others), 2, replace=False)]
    colours = np.stack([main, second, accent])
    hsv = cv2.cvtColor((colours / 255)[None].astype(np.float32), cv2.COLOR_RGB2HSV)[0]
    hsv[:, 0] = (hsv[:, 0] + rng.normal(0, 7, 3)) % 360
    hsv[:, 1:] = np.clip(hsv[:, 1:] * rng.uniform([0.85, 0.9], [1.1, 1.04], (3, 2)), 0, 1)
    jittered: np.ndarray = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * np.float32(255)
    return jittered
