"""What is carried by a bail or a big loop: bucket and kettle."""

import numpy as np

from data_prep.mini.canvas import Canvas, Shape, circle, rounded_box
from data_prep.mini.patterns import decorate
from data_prep.mini.vessels import Wall, blend, fill, inside, lip, loop, outside

_STEEL = np.array([206, 209, 212], np.float32)


def paint_bucket(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A bucket: rim of radius 1 round the centre, its bail over the opening along v, a grip in its middle."""
    main, second, accent = colours
    height, base = 1.15 + 0.4 * shape[1], 0.66 + 0.16 * shape[2]
    wall = Wall.cone(1.0, height, base)
    metal = shape[3] < 0.2
    body = _STEEL if metal else main
    gloss = 0.8 if metal else float(rng.choice([0.25, 0.55]))
    kinds = ["plain", "rings", "band", "print", "stripes", "plain", "dip"]
    wall.cast(c)
    outside(c, wall, np.stack([body, second, accent]), kinds[int(shape[5] * len(kinds))], gloss, rng)
    lip(c, body * 1.02, 1.0, 0.87, gloss)
    cup = Wall.cone(0.87, height * 0.96, base)
    inside(c, cup, body * 0.97, gloss * 0.7, ring=(rng.uniform(0.3, 0.7), body * 0.86) if shape[4] < 0.5 else None)
    if shape[6] < 0.2:
        fill(c, cup, rng.uniform(0.35, 0.6), np.array([170, 196, 204]))
    wire = np.array([214, 216, 218]) if rng.random() < 0.6 else accent * 0.9
    half = 0.03 if rng.random() < 0.6 else 0.055
    for below, light in ((0.03, 0.7), (0.0, 1.05)):
        u, v = c.turn(c.x, c.y - below)
        c.paint(rounded_box(u, v, half, 0.97, half), wire, light, handle=True)
    for end in (-0.95, 0.95):  # the ears that hold it
        c.paint(rounded_box(c.u, c.v - end, 0.12, 0.085, 0.06), body, 0.92, handle=True)
        c.paint(circle(c.u, c.v - end, 0.035), wire, 0.7, handle=True)
    grip = np.array([236, 236, 234]) if shape[7] < 0.7 else accent
    for below, light in ((0.05, 0.68), (0.025, 0.75)):
        u, v = c.turn(c.x, c.y - below)
        c.paint(rounded_box(u, v, 0.085, 0.43, 0.06), grip, light, handle=True)
    normal = c.turn(c.x, c.y)[0] / 0.1
    tilt = np.clip(normal, -0.9, 0.9)
    facing = (tilt * c.axis[0], tilt * c.axis[1], np.sqrt(1 - tilt * tilt))
    ridges = 1 - 0.06 * (np.abs((c.v * 14) % 1 - 0.5) < 0.12)
    c.paint(
        rounded_box(c.u, c.v, 0.085, 0.43, 0.06), grip, c.lambert(*facing) * ridges, 0.3 * c.glint(*facing), handle=True
    )


def paint_kettle(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A kettle: body of radius 1 round the centre, knob at (0, 0), spout at -u, D loop at +u."""
    main, second, accent = colours
    material = int(shape[3] * 3)  # metal, enamel, plastic
    body = _STEEL * (0.86 + 0.14 * shape[4]) if material == 0 else main
    gloss = (0.9, 0.65, 0.3)[material]
    black = np.array([44, 44, 48], np.float32)
    trim = black if rng.random() < 0.5 else second * 0.9
    wall = Wall.bulging(1.0, 0.2 + 0.12 * shape[1], 0.92, 0.02)
    wall.cast(c)
    kinds = ["plain", "band", "dots", "flowers", "print", "plain", "speckle"]
    kind = kinds[int(shape[5] * len(kinds))] if material else "plain"
    tip = 1.3 + 0.13 * shape[6]  # spout: narrows outwards
    for below, light in ((0.1, 0.6), (0.05, 0.72), (0.0, 1.0)):
        u, v = c.turn(c.x, c.y - below)
        along = np.clip((-u - 0.75) / (tip - 0.75), 0, 1)
        half = 0.3 - 0.19 * along
        share = np.clip(v / half, -1, 1)
        normal = (-share * c.axis[1], share * c.axis[0], np.sqrt(1 - share * share))
        spout = np.maximum(np.abs(v) - half, np.maximum(-u - tip, u + 0.7))
        c.paint(spout, body, light * c.lambert(*normal), gloss * c.glint(*normal) * (light == 1.0))
    c.paint(circle((c.u + tip) * 2.2, c.v, 0.1), black, 0.8)
    loop(c, trim, (1.2, 0), (0.4, 0.33), 0.12, 0.16 + 0.12 * shape[7])
    outside(c, wall, np.stack([body, second, accent]), kind, gloss, rng)
    # the dome: from the widest circle up to the lid
    rise = 0.1
    far = np.sqrt(c.x * c.x + np.square(c.y + rise * np.clip(1 - np.abs(c.y), 0, 1)))
    tilt = 0.92 * np.clip(far, 0, 1) ** 1.6
    east, near = c.x / (far + 1e-3) * tilt, c.y / (far + 1e-3) * tilt
    up = np.sqrt(1 - tilt * tilt)
    angle = np.arctan2(c.x, c.y)
    weights = decorate(kind, angle * 0.8, 1.15 * (1 - far) + 0.1, c.soft, rng)
    dome = c.lambert(east, near, up)
    if material == 0:  # brushed steel mirrors the room
        dome = dome * (0.88 + 0.2 * np.cos(2 * angle + 2.2 * far) * far)
    shine = gloss * np.maximum(c.glint(east, near, up, 30), 0.35 * np.exp(-np.square((far - 0.82) / 0.05)) * (near < 0))
    c.paint(circle(c.x, c.y, 1.0), blend(body, second, accent, weights), dome, shine)
    lid = 0.5 + 0.14 * shape[2]
    centre = -0.06
    gap = circle(c.x, c.y - centre, lid)
    c.paint(np.abs(gap) - 0.018, body * 0.5, 0.9, opacity=0.8)
    cover = second if rng.random() < 0.3 and material else body
    away = np.sqrt(c.x * c.x + np.square(c.y - centre)) / lid
    tilt = 0.55 * np.clip(away, 0, 1)
    facing = (c.x / lid * 0.55, (c.y - centre) / lid * 0.55, np.sqrt(1 - tilt * tilt))
    c.paint(gap + 0.02, cover, 1.02 * c.lambert(*facing), gloss * c.glint(*facing, 50))
    for below, light in ((0.12, 0.45), (0.06, 0.7), (0.0, 1.0)):  # the knob
        knob = circle(c.x, c.y - (below - 0.04), 0.16)
        c.paint(
            knob, trim, light * (1.0 + 0.25 * np.clip(-(c.x + c.y) / 0.3, -1, 1)), 0.5 * light**4 * c.soft(knob + 0.1)
        )
