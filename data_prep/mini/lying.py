"""What lies on the table along its axis: bottle, knife and toy car."""

import numpy as np

from data_prep.mini.canvas import Canvas, Shape, circle, rounded_box
from data_prep.mini.patterns import decorate
from data_prep.mini.vessels import blend

_DARK = np.array([40, 40, 44], np.float32)


def _shade_below(c: Canvas, half_u: float, half_v: float, high: float, corner: float = 0.1, u0: float = 0.0) -> None:
    """The shadow of a box round (u0, 0) that is `high` units tall."""
    gx, gy = c.ground
    for share in (0.0, 0.5, 1.0):
        x, y = (gx - (share * high * c.fall[0]), gy - (share * high * c.fall[1]))
        u, v = c.turn(x, y)
        box = rounded_box(u - u0, v, half_u, half_v, min(corner, half_v))
        c.cast(box, 0.1 + 0.25 * share * high, 1 - 0.3 * share)
    u, v = c.turn(gx, gy)
    c.cast(rounded_box(u - u0, v, half_u, half_v, min(corner, half_v)), 0.26, 0.85)


def paint_bottle(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A bottle: base at u = -1, cap at +1."""
    main, second, accent = colours
    radius = 0.25 + 0.08 * shape[1]
    neck = radius * (0.3 + 0.25 * shape[2])
    u, v = c.u, c.v
    start = 0.05 + 0.35 * shape[3]
    slope = np.clip((u - start) / (0.68 - start), 0, 1)
    smooth = slope * slope * (3 - 2 * slope) if shape[4] < 0.6 else slope**0.6
    bound = radius + (neck - radius) * smooth
    bound = bound * (0.7 + 0.3 * np.sqrt(np.clip(1 - np.square(np.clip((-0.91 - u) / 0.09, 0, 1)), 0, 1)))
    if shape[6] < 0.3:  # a waist, to hold it by
        bound = bound * (1 - 0.12 * np.exp(-np.square((u - start + 0.25) / 0.12)))
    if 0.3 <= shape[6] < 0.55:  # moulded rings
        bound = bound - 0.025 * bound * ((np.cos(u * 42) > 0.3) & (np.abs(u + 0.2) > 0.35) & (u < start))
    share = v / np.maximum(bound, 0.02)
    normal = c.roll(share)
    body = np.maximum(np.abs(v) - bound, np.abs(u) - 1)
    light = c.lambert(*normal) * (1 - 0.28 * np.clip(np.abs(share), 0, 1) ** 4)
    clear = shape[5] < 0.4
    _shade_below(c, 0.97, radius * 0.9, 2 * radius * 0.8, 0.12, -0.05)
    if clear:  # see-through plastic or glass with a drink in it
        drink = [(198, 214, 220), (122, 58, 28), (206, 120, 40), (96, 140, 84), (226, 222, 206)][rng.integers(5)]
        c.paint(body, np.array(drink) * 0.4 + main * 0.1 + 120, light)
        level = np.maximum(np.maximum(np.abs(v) - bound * 0.9, np.abs(u + 0.06) - 0.88), u - rng.uniform(0.2, 0.6))
        c.paint(level, drink, 0.8 * light + 0.2, opacity=0.8)
        c.paint(np.maximum(np.abs(body + 0.02) - 0.015, body), np.array(drink) * 0.5 + 60, light, opacity=0.5)
    else:
        c.paint(body, main, light)
    low, high = -0.75 + 0.25 * shape[7], start - 0.04
    kinds = ["plain", "band", "print", "stripes", "dots", "checks", "rings", "flowers", "zigzag"]
    label = np.maximum(body, np.maximum(low - u, u - high))
    weights = decorate(kinds[rng.integers(len(kinds))], share * 0.5, (u - low) * 0.8, c.soft, rng)
    if clear or shape[7] < 0.7:
        c.paint(label, blend(second, accent, main, weights), light)
    else:
        c.paint(label, blend(main, second, accent, weights), light)
    cap_half = max(neck * 1.18, 0.085)
    cap_colour = [accent, main * 0.8, np.array([236, 236, 236]), _DARK][rng.integers(4)]
    cap = rounded_box(u - 0.89, v, 0.11, cap_half, 0.03)
    ridges = 1 - 0.12 * (np.sin(v * (16 / neck)) > 0.3)
    c.paint(cap, cap_colour, c.lambert(*c.roll(v / cap_half)) * ridges)
    c.paint(np.maximum(np.abs(u - 0.765) - 0.018, np.abs(v) - cap_half), cap_colour * 0.8, 0.9)
    gleam = c.streak(share, 90) * (0.75 if clear else 0.5)
    c.veil(np.maximum(body + 0.02, u - 0.72), gleam)


def paint_knife(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A knife: blade from u = -1, handle to +1."""
    main, second, accent = colours
    split = 0.04 + 0.14 * shape[1]
    width = 0.085 + 0.03 * shape[2]
    spread = width * (1.05 + 0.95 * shape[3])
    u, v = c.u, c.v
    tip = np.sqrt(np.clip((u + 1) / (0.2 + 0.6 * shape[4]), 0, 1))
    belly = spread * (2 * tip - 1)
    drop = spread * 0.7 * np.clip((-0.6 - u) / 0.4, 0, 1) ** 2 * (shape[4] > 0.6)  # the spine falls to the point
    blade = np.maximum(np.maximum(-v - spread + drop, v - belly), np.maximum(-u - 1, u - split))
    tinted = shape[7] < 0.22  # ceramic blades are coloured
    steel = main * 0.5 + 110 if tinted else np.array([192, 197, 204], np.float32) * (0.85 + 0.25 * shape[5])
    for share in (0.0, 1.0):
        gx, gy = c.ground
        a, b = c.turn(gx - (0.05 * share * c.fall[0]), gy - (0.04 * c.drop + 0.06 * share))
        c.cast(rounded_box(a - (split / 2 - 0.5), b, 0.5 + split / 2, spread * 0.9, spread * 0.5), 0.12, 0.6)
        c.cast(rounded_box(a - ((1 + split) / 2), b, (1 - split) / 2, width, width * 0.7), 0.16, 0.9)
    mirror = np.sin(2.6 * u + 3.2 * v / spread + rng.uniform(0, 6))
    c.paint(blade, steel, 0.9 + 0.16 * mirror, 0.5 * np.clip(mirror, 0, 1) ** 6)
    c.paint(np.maximum(blade, belly - (spread * 0.45) - v), np.minimum(steel * 1.12 + 12, 255), 1.0)
    if shape[3] > 0.75:  # hollows along the blade
        hollow = circle((u * 7) % 1 - 0.5, (v + (0.2 * spread)) * 7, 0.3) / 7
        c.paint(np.maximum(np.maximum(hollow, blade + 0.03), np.abs(u + 0.4) - 0.4), steel * 0.82, 1.0)
    c.paint(np.maximum(np.abs(blade) - 0.008, blade), np.array([112, 116, 122]), 1.0, opacity=0.6)
    middle, half = (split + 1) / 2, (1 - split) / 2
    wave = 1 + (0.05 + 0.12 * rng.random()) * np.sin((u - split) * rng.uniform(4, 11))
    v_grip = v - (0.03 * rng.random())
    grip = rounded_box(u - middle, v_grip, half, width, width * rng.uniform(0.4, 0.95)) - width * (wave - 1)
    kind = rng.integers(4)
    wood = [(118, 74, 44), (84, 54, 38), (166, 118, 74)][rng.integers(3)]
    grip_colour = (main, np.array(wood), _DARK, main)[kind]
    normal = c.roll(v_grip / (width * 1.06))
    grain = 1 + 0.07 * np.sin(u * 5 + 60 * v + 3 * np.sin(9 * u)) * (kind == 1)
    c.paint(grip, grip_colour, c.lambert(*normal) * grain, 0.35 * c.streak(v_grip / (width * 1.06)))
    if kind == 0:  # a soft inlay
        inlay = rounded_box(u - (middle + 0.03), v_grip, half * 0.75, width * 0.45, width * 0.4)
        c.paint(inlay, second * 0.85, c.lambert(*normal))
    elif kind == 3:
        weights = decorate(["stripes", "dots", "checks"][rng.integers(3)], u, v + 1, c.soft, rng)
        c.paint(np.maximum(grip + 0.015, split + 0.08 - u), blend(main, second, accent, weights), c.lambert(*normal))
    else:
        for k in (-0.55, 0.0, 0.55):
            rivet = circle(u - (middle + k * half), v_grip, width * 0.2)
            c.paint(rivet, np.array([216, 210, 194]), 1.0)
    bolster = rounded_box(u - split, v, 0.035, width * 1.08, 0.01)
    c.paint(bolster, np.array([176, 178, 180]), c.lambert(*c.roll(v / (width * 1.1))))


def paint_car(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A toy car: rear at u = +1."""
    main, second, accent = colours
    width, high = 0.43 + 0.08 * shape[1], 0.3 + 0.14 * shape[6]
    kind = ("sedan", "truck", "racer", "van")[int(shape[7] * 4)]
    _shade_below(c, 0.96, width, high * 1.3, 0.2)
    lifted = high * c.drop  # how far the wheels appear below the shell

    def frame(level: float) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of what appears `level` of the car's height above the table."""
        return c.turn(c.x, c.y - lifted * (1 - level))

    big = 1.25 if kind in ("truck", "racer") else 1.0
    for axle in (-0.56, 0.56):
        for side in (-1.0, 1.0):
            for level, shade in ((0.0, 0.75), (0.2, 0.9), (0.4, 1.1)):
                u, v = frame(level)
                wheel_u, wheel_v = u - axle, v - side * width * 0.95
                c.paint(rounded_box(wheel_u, wheel_v, 0.17 * big, 0.09 * big, 0.06), _DARK, shade)
    round_end = 0.14 + 0.2 * shape[2]
    taper = 0.14 + 0.3 * (kind == "racer")
    bumper = second if rng.random() < 0.3 else main
    for level in (0.25, 0.4, 0.55, 0.7, 0.85):
        u, v = frame(level)
        flank = rounded_box(u, v / (1 - taper * np.clip(-u, 0, 1) ** 2), 1.0, width, round_end)
        c.paint(flank, bumper if level < 0.5 else main, 0.56 + 0.22 * level)
    u, v = c.u, c.v
    shell = rounded_box(u, v / (1 - taper * np.clip(-u, 0, 1) ** 2), 1.0, width, round_end)
    edge = np.clip(shell / (0.45 * width) + 1, 0, 1) ** 2 * 0.8
    nu, nv = u * np.abs(u) ** 3, v / width
    norm = edge / (np.sqrt(nu * nu + nv * nv) + 1e-3)
    cos, sin = c.axis
    normal = ((nu * cos - nv * sin) * norm, (nu * sin + nv * cos) * norm, np.sqrt(1 - edge * edge))
    light, gleam = c.lambert(*normal), 0.7 * c.glint(*normal, 50)
    c.paint(shell, main, light, gleam)
    stripe = rng.integers(4)
    if stripe == 0:
        c.paint(np.maximum(shell + 0.01, np.abs(np.abs(v) - width * 0.2) - width * 0.1), accent, light)
    elif stripe == 1:
        c.paint(np.maximum(shell + 0.01, np.abs(v) - width * 0.28), second, light)
    elif stripe == 2:
        weights = decorate(["checks", "dots", "flowers"][rng.integers(3)], u * 0.9, v + 1, c.soft, rng)
        c.paint(np.maximum(shell + 0.02, -u + 0.2), blend(main, second, accent, weights), light)
    c.paint(np.maximum(np.abs(u + 0.48) - 0.012, np.abs(v) - width * 0.78), main * 0.6, opacity=0.7)
    middle, length, roof_length = {
        "sedan": (0.12, 0.52, 0.3),
        "truck": (-0.45, 0.34, 0.24),
        "racer": (0.2, 0.3, 0.16),
        "van": (0.14, 0.8, 0.68),
    }[kind]
    lift = (0.2 if kind == "racer" else 0.42) * high * c.drop
    glass_light = 0.9 + 0.5 * np.clip(-(c.x + c.y), -0.5, 0.8)
    for share in (0.0, 0.33, 0.66):  # windows narrow towards the roof
        a, b = c.turn(c.x, c.y + lift * share)
        half = length + (roof_length - length) * share
        pane = rounded_box(a - middle, b, half, width * (0.84 - 0.16 * share), 0.12)
        c.paint(pane, np.array([54, 66, 80]), glass_light * (0.85 + 0.3 * share))
    a, b = c.turn(c.x, c.y + lift)
    roof = rounded_box(a - (middle + 0.02), b, roof_length, width * 0.68, 0.1)
    roof_colour = second if shape[5] < 0.4 else main
    c.paint(roof, roof_colour, 1.08, 0.35 * np.exp(-np.square((a - middle + b) / 0.1)))
    if kind == "truck":  # an open box
        for level in (0.0, 0.5, 1.0):
            a, b = c.turn(c.x, c.y + lift * level)
            box = rounded_box(a - 0.42, b, 0.54, width * 1.02, 0.06)
            c.paint(box, second, 0.72 + 0.38 * level * level)
        c.paint(box + 0.06, second, 0.66)
        a, b = c.turn(c.x, c.y + lift * 0.2)
        hollow = np.maximum(box + 0.06, rounded_box(a - 0.42, b, 0.48, width * 0.96, 0.05))
        c.paint(hollow, second, 0.86 + 0.05 * np.sin(u * 40))
    elif kind == "racer":
        c.paint(rounded_box(u - 0.9, v, 0.1, width * 1.05, 0.03), second, 1.05)
        badge = circle(u + 0.4, v, 0.14)
        c.paint(badge, np.array([244, 244, 240]), light)
        c.paint(rounded_box(u + 0.4, v, 0.07, 0.03, 0.01), _DARK)
    elif rng.random() < 0.35:  # a light bar
        c.paint(rounded_box(a - middle, b, 0.06, width * 0.5, 0.03), accent, 1.1)
    for side in (-0.62, 0.62):
        lamp = circle((u + 0.92) * 1.6, v - (side * width * (1 - taper)), 0.085)
        c.paint(lamp, np.array([255, 246, 204]), 1.0)
        c.paint(rounded_box(u - 0.96, v - (side * width), 0.025, 0.08, 0.02), (190, 30, 30))
