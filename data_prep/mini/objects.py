"""The objects on the table: mug, bottle, bowl, knife and toy car, each instance a set of parameters.

An object's shape and colours belong to (seed, category, instance); its place, rotation and size to the clip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.mini.canvas import Canvas, circle, rounded_box

INSTANCES = 45
CATEGORIES = {1: "ToyCar", 2: "Mug", 5: "Bottle", 7: "Bowl", 13: "Knife"}  # HOI4D's class ids


@dataclass(frozen=True)
class Thing:
    """One object lying in a clip.

    Attributes:
        category: clean category name.
        centre: (2,) pixel of its centre.
        angle: direction of its axis in the picture, radians, +y down: a mug's handle, a bottle's cap, a knife's
            handle, a car's rear.
        size: radius of a round object, half length of a long one, pixels.
        shape: (8,) instance parameters in [0, 1].
        colours: (3, 3) RGB, 0..255: main, second, accent.
    """

    category: str
    centre: np.ndarray
    angle: float
    size: float
    shape: np.ndarray
    colours: np.ndarray

    def point(self, u: float, v: float) -> np.ndarray:
        """A point of the object in the picture: u, v in units of `size` along and across its axis."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.centre + self.size * np.array([u * cos - v * sin, u * sin + v * cos])


def draw_thing(seed: int, category: int, instance: int, rng: np.random.Generator) -> Thing:
    """Lay an instance on the table: `rng` decides its place and size, (seed, category, instance) its looks."""
    own = np.random.default_rng(np.random.SeedSequence([seed, 7, category, instance]))
    shape = own.random(8)
    name = CATEGORIES[category]
    low, high = {"Mug": (80, 98), "Bottle": (132, 158), "Bowl": (104, 128), "Knife": (140, 164), "ToyCar": (108, 130)}[
        name
    ]
    size = (low + (high - low) * shape[0]) * rng.uniform(0.94, 1.06)
    angle = rng.uniform(0, 2 * np.pi)
    if name in ("Mug", "Knife"):  # whoever put it there turned the handle towards the person
        angle = np.pi / 2 + np.radians(rng.uniform(-100, 100))
    centre = np.array([rng.uniform(700, 1220), rng.uniform(400, 620)])
    return Thing(name, centre, angle, size, shape, _colours(own))


def paint_thing(thing: Thing, light: np.ndarray) -> tuple[Canvas, int, int]:
    """Paint an object.

    Returns:
        The canvas, and the picture's pixel x, y of its upper left corner.
    """
    half = int(thing.size * 1.75) + 8
    whole = np.floor(thing.centre).astype(int)
    offset = thing.centre - whole
    canvas = Canvas.create(half, (float(offset[0]), float(offset[1])), thing.angle, light)
    _PAINTERS[thing.category](canvas, thing)
    return canvas, int(whole[0]) - half, int(whole[1]) - half


def _colours(rng: np.random.Generator) -> np.ndarray:
    hue = (rng.uniform(0, 180) + np.array([0, rng.choice([25, 60, 90, 140]), rng.choice([70, 90, 110])])) % 180
    saturation = np.array([rng.choice([40, 150, 190, 215]), rng.choice([20, 120, 180]), rng.choice([60, 200])])
    value = np.array([rng.choice([130, 185, 215, 235]), rng.choice([110, 200, 240]), rng.choice([90, 220])])
    hsv = np.stack([hue, saturation, value], axis=-1).astype(np.uint8)[None]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].astype(np.float32)


def _mug(c: Canvas, t: Thing) -> None:
    r, (main, second, accent) = t.size, t.colours
    lean = r * (0.32 + 0.3 * t.shape[1])  # the wall seen below the rim, for the camera looks down at a slant
    base = r * (0.74 + 0.18 * t.shape[2])
    rx, ry = c.x, c.y + np.float32(lean / 2)  # from the rim's centre
    # handle: a loop at the side
    reach, thick = r * (0.36 + 0.12 * t.shape[3]), r * (0.11 + 0.05 * t.shape[4])
    hu, hv = c.u - np.float32(r * 1.08), c.v
    loop = np.sqrt(np.square(hu) + np.square(hv * 0.82)) - np.float32(reach)
    ring = np.abs(loop) - np.float32(thick)
    round_light = 0.72 + 0.4 * np.clip(1 - np.square(loop / thick), 0, 1)
    c.paint(ring, main * 0.92, round_light)
    # wall: circles from base to rim
    along = np.clip(ry / lean, 0, 1)
    wall = np.sqrt(rx * rx + np.square(ry - along * lean)) - (r + along * (base - r))
    side = np.clip(rx / r, -1, 1)
    shade = c.lambert(side * 0.95, np.float32(0.3) * np.sqrt(1 - side * side))
    c.paint(wall, main, shade)
    depth = circle(rx, ry, r) / lean
    if t.shape[5] < 0.5:  # a painted band
        c.paint(np.maximum(wall + 2, np.abs(depth - 0.45) * lean - lean * 0.14), second, shade)
    c.paint(circle(rx, ry, r), main, 1.12 * np.ones_like(shade))
    inside = circle(rx, ry, r * 0.885)
    inner = second if t.shape[6] < 0.4 else main * 0.8
    hollow = c.lambert(-rx / r * 0.9, -ry / r * 0.9) * (0.62 + 0.2 * np.clip(-ry / r, -1, 1))
    c.paint(inside, inner, hollow)
    drink = [(60, 34, 20), (150, 84, 40), (236, 226, 206), None][int(t.shape[7] * 4)]
    floor = np.maximum(inside + 1, circle(rx, ry - np.float32(0.14 * r), r * 0.8))
    if drink is None:
        c.paint(np.maximum(inside + 1, circle(rx, ry - np.float32(0.2 * r), r * 0.62)), inner, 0.62)
    else:
        c.paint(floor, np.array(drink), 0.9 + 0.12 * np.clip(-(rx + ry) / r, -1, 1))
    if accent.mean() > 120:
        c.paint(np.abs(circle(rx, ry, r * 0.94)) - np.float32(0.02 * r), accent, 1.0, 0.7)


def _bottle(c: Canvas, t: Thing) -> None:
    half, (main, second, accent) = t.size, t.colours
    r = half * (0.27 + 0.06 * t.shape[1])
    neck = r * (0.32 + 0.12 * t.shape[2])
    u = c.u / half  # base at -1, cap at +1
    start = 0.12 + 0.3 * t.shape[3]
    slope = np.clip((u - start) / (0.66 - start), 0, 1)
    radius = (r + (neck - r) * slope * slope * (3 - 2 * slope)).astype(np.float32)
    radius *= np.sqrt(np.clip(1 - np.square(np.clip((-0.88 - u) / 0.13, 0, 1)), 0, 1))  # a rounded bottom
    share = c.v / np.maximum(radius, 1)
    body = np.maximum(np.abs(c.v) - radius, np.abs(c.u) - np.float32(half))
    shade = c.roll(share) * (1 - 0.3 * np.clip(np.abs(share), 0, 1) ** 4)
    c.paint(body, main, shade)
    low, high = -0.72 + 0.2 * t.shape[4], start - 0.06
    c.paint(np.maximum(body, np.maximum(low - u, u - high) * half), second, shade)
    if t.shape[5] < 0.6:  # a stripe on the label
        middle = (low + high) / 2
        c.paint(np.maximum(body, (np.abs(u - middle) - 0.07) * half), accent, shade)
    cap = np.maximum(np.abs(c.v) - np.float32(neck * 1.25), np.abs(u - 0.88) * half - np.float32(0.12 * half))
    ridges = 1 + 0.1 * np.sin(c.v * np.float32(10 / neck))
    c.paint(cap, accent * 0.85, c.roll(c.v / (neck * 1.25)) * ridges)
    glow = c.shine(share)[..., None] * (body < -1)[..., None] * (u < 0.74)[..., None]
    c.rgb += 0.38 * glow * (255 - c.rgb)


def _bowl(c: Canvas, t: Thing) -> None:
    r, (main, second, accent) = t.size, t.colours
    lean = r * (0.14 + 0.12 * t.shape[1])
    rx, ry = c.x, c.y + np.float32(lean / 2)
    along = np.clip(ry / lean, 0, 1)
    wall = np.sqrt(rx * rx + np.square(ry - along * lean)) - (r + along * (0.8 * r - r))
    side = np.clip(rx / r, -1, 1)
    c.paint(wall, main * 0.85, c.lambert(side * 0.95, np.float32(0.3) * np.sqrt(1 - side * side)))
    c.paint(circle(rx, ry, r), main, 1.12)
    inside = circle(rx, ry, r * 0.93)
    bulge = 0.85 * np.clip(np.sqrt(rx * rx + ry * ry) / r, 0, 1)
    far = np.sqrt(rx * rx + ry * ry) + 1e-3
    hollow = c.lambert(-rx / far * bulge, -ry / far * bulge)
    inner = second if t.shape[2] < 0.5 else main * 0.9
    c.paint(inside, inner, hollow * 0.9)
    for k in range(int(t.shape[3] * 3)):  # painted rings
        c.paint(np.abs(circle(rx, ry, r * (0.84 - 0.11 * k))) - np.float32(0.022 * r), accent, hollow)
    bx, by = rx, ry - np.float32(0.08 * r)
    floor = r * (0.42 + 0.1 * t.shape[4])
    c.paint(circle(bx, by, floor), inner, hollow * 0.8)
    if t.shape[5] < 0.55:  # rice, soup, or berries
        food = np.array([(238, 232, 214), (196, 96, 36), (150, 30, 48), (92, 130, 52)][int(t.shape[6] * 4)], np.float32)
        lumps = 0.9 + 0.1 * np.sin(bx * 0.35 + 2 * np.sin(by * 0.21)) * np.sin(by * 0.33 + 2 * np.sin(bx * 0.17))
        c.paint(circle(bx, by, floor * 1.3), food, lumps * (0.95 - 0.12 * (bx + by) / r))


def _knife(c: Canvas, t: Thing) -> None:
    half, (main, _, accent) = t.size, t.colours
    split = 0.02 + 0.24 * t.shape[1]  # blade from -1 to here, handle from here to +1
    width = half * (0.105 + 0.03 * t.shape[2])
    u = c.u / half
    spread = width * (1.15 + 0.5 * t.shape[3])
    tip = np.sqrt(np.clip((u + 1) / (0.35 + 0.4 * t.shape[4]), 0, 1))
    belly = spread * (2 * tip - 1)  # the edge curves up to the tip on the spine
    blade = np.maximum(np.maximum(-c.v - np.float32(spread), c.v - belly), np.maximum(-u - 1, u - split) * half)
    steel = np.array([196, 202, 210], np.float32) * (0.82 + 0.3 * t.shape[5])
    sheen = 0.92 + 0.16 * np.sin(c.u * 0.02 + 2 * c.v / width)
    c.paint(blade, steel, sheen)
    c.paint(np.maximum(blade, belly - spread * 0.42 - c.v), np.array([238, 242, 246]), sheen)
    c.paint(np.maximum(np.abs(blade) - 1.2, blade), np.array([120, 124, 130]), 1.0, 0.6)
    middle = (split + 1) / 2 * half
    wave = 1 + 0.1 * np.sin((u - split) * 9)
    grip = rounded_box(c.u - np.float32(middle), c.v, (1 - split) / 2 * half, width, width * 0.75) - width * (wave - 1)
    handle = main * 0.8 if t.shape[6] < 0.6 else np.array([110, 70, 42], np.float32)
    c.paint(grip, handle, c.roll(c.v / (width * 1.05)))
    for k in (-0.55, 0.0, 0.55):
        rivet = circle(c.u - np.float32(middle + k * (1 - split) / 2 * half), c.v, width * 0.2)
        c.paint(rivet, np.array([214, 208, 190]), 1.0)
    bolster = rounded_box(c.u - np.float32(split * half), c.v, half * 0.035, width * 1.08, 2.0)
    c.paint(bolster, accent * 0.4 + 100, c.roll(c.v / (width * 1.1)))


def _car(c: Canvas, t: Thing) -> None:
    half, (main, second, accent) = t.size, t.colours
    width = half * (0.46 + 0.08 * t.shape[1])
    for a in (-0.56, 0.56):
        for b in (-1.0, 1.0):
            tyre = rounded_box(
                c.u - np.float32(a * half), c.v - np.float32(b * width * 0.93), half * 0.17, half * 0.11, 6.0
            )
            c.paint(tyre, np.array([38, 38, 42]), 0.9 + 0.2 * np.sin(c.u * 0.5))
    nose = 1 - 0.14 * np.clip(-c.u / half, 0, 1) ** 2
    shell = rounded_box(c.u, c.v / nose, half, width, half * (0.16 + 0.2 * t.shape[2]))
    bulge = np.clip(shell / (0.3 * width) + 1, 0, 1) * 0.85
    nu, nv = c.u / half, c.v / width
    norm = np.sqrt(nu * nu + nv * nv) + 1e-3
    nx = (nu * c.axis[0] - nv * c.axis[1]) / norm * bulge
    ny = (nu * c.axis[1] + nv * c.axis[0]) / norm * bulge
    shade = c.lambert(nx, ny)
    c.paint(shell, main, shade)
    if t.shape[3] < 0.5:  # racing stripes
        c.paint(np.maximum(shell + 1, np.abs(np.abs(c.v) - width * 0.2) - width * 0.1), accent, shade)
    c.paint(np.abs(c.u + np.float32(0.5 * half)) - 1.2 + 100 * (np.abs(c.v) > 0.75 * width), main * 0.6, 1.0, 0.7)
    cabin_u = c.u - np.float32((0.12 + 0.12 * t.shape[4]) * half)
    glass = rounded_box(cabin_u, c.v, half * 0.5, width * 0.8, half * 0.14)
    c.paint(glass, np.array([52, 66, 82]), 0.85 + 0.35 * np.clip(-(c.x + c.y) / half, -0.5, 1))
    roof = rounded_box(cabin_u - np.float32(0.03 * half), c.v, half * 0.29, width * 0.66, half * 0.1)
    c.paint(roof, second if t.shape[5] < 0.35 else main, 1.08 + 0.1 * np.clip(-c.y / half, -1, 1))
    for b in (-0.62, 0.62):
        lamp = circle((c.u + np.float32(0.93 * half)) * 1.6, c.v - np.float32(b * width), half * 0.085)
        c.paint(lamp, np.array([255, 246, 196]), 1.0)
        rear = rounded_box(c.u - np.float32(0.95 * half), c.v - np.float32(b * width), half * 0.03, half * 0.08, 2.0)
        c.paint(rear, np.array([196, 28, 30]), 1.0)


_PAINTERS: dict[str, Callable[[Canvas, Thing], None]] = {
    "Mug": _mug,
    "Bottle": _bottle,
    "Bowl": _bowl,
    "Knife": _knife,
    "ToyCar": _car,
}
