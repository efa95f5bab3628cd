"""Simple things that lie about: book, notebook, pen, phone, fruit, spoon, box, glasses case."""

from collections.abc import Callable

import numpy as np

from data_prep.mini.canvas import Canvas, Shape, circle, rounded_box
from data_prep.mini.patterns import decorate
from data_prep.mini.vessels import blend

_DARK = np.array([42, 44, 50], np.float32)
_PAPER = np.array([240, 236, 224], np.float32)


def _slab(
    c: Canvas, half: tuple[float, float], high: float, corner: float, top: np.ndarray, side: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint a flat box and its shadow.

    Returns:
        (u, v) of the plane of its top, and the signed distance to it.
    """
    gx, gy = c.ground
    for share in (0.0, 1.0):
        a, b = c.turn(gx - (share * high * c.fall[0]), gy - (share * high * c.fall[1]))
        c.cast(rounded_box(a, b, *half, corner), 0.1 + 0.2 * share * high, 0.9)
        c.cast(rounded_box(a, b, *half, corner), 0.3, 0.6)
    for level in np.linspace(0, 1, 2 + int(high * 12)).tolist():
        a, b = c.turn(c.x, c.y + (level * high * c.drop))
        c.paint(rounded_box(a, b, *half, corner), side, 0.7 + 0.12 * level)
    a, b = c.turn(c.x, c.y + (high * c.drop))
    sdf = rounded_box(a, b, *half, corner)
    c.paint(sdf, top, 1.02 + 0.05 * (a * c.sun[0] + b * c.sun[1]))
    return a, b, sdf


def _book(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    main, second, accent = colours
    half = (1.0, 0.66 + 0.1 * shape[1])
    u, v, sdf = _slab(c, half, 0.08 + 0.16 * shape[2], 0.02, main * 0.85, _PAPER * 0.9)
    c.paint(np.maximum(sdf, np.abs(v + half[1]) - 0.09), main * 0.6)
    kind = ["band", "print", "dip", "dots", "plain"][int(shape[3] * 5)]
    weights = decorate(kind, u * 0.7, v + half[1] + 0.05, c.soft, rng)
    c.paint(np.maximum(sdf + 0.06, 0.14 - v - half[1]), blend(main * 0.85, second, accent, weights))
    c.paint(rounded_box(u, v - (half[1] * 0.55), 0.5, 0.07, 0.02), _PAPER)
    for line in (-0.02, 0.03):
        c.paint(rounded_box(u, v - (half[1] * 0.55 + line), 0.4, 0.012, 0.01), _DARK, opacity=0.7)


def _notebook(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    half = (1.0, 0.72)
    u, v, sdf = _slab(c, half, 0.05, 0.03, _PAPER, _PAPER * 0.9)
    rules = np.abs((v * 9) % 1 - 0.5) / 9 - 0.006
    c.paint(np.maximum(sdf + 0.08, rules), np.array([150, 168, 200]), opacity=0.7)
    rows = np.floor(v * 9)
    ends = 0.2 + 0.6 * np.abs(np.sin(rows * 12.9 + shape[1] * 50))
    script = np.abs((v * 9) % 1 - 0.3 - 0.22 * np.sin(u * 70) * np.sin(u * 23 + rows)) / 9 - 0.008
    c.paint(np.maximum(np.maximum(sdf + 0.15, script), u - ends), _DARK, opacity=0.6 * (shape[2] < 0.7))
    rings = circle((u * 8) % 1 - 0.5, (v + (half[1] - 0.05)) * 8, 0.25) / 8
    c.paint(np.maximum(rings, np.abs(u) - 0.93), _DARK, opacity=0.8)


def _pen(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    main, second, _ = colours
    gx, gy = c.ground
    a, b = c.turn(gx - 0.05, gy - 0.08)
    c.cast(rounded_box(a, b, 0.95, 0.05, 0.05), 0.14, 0.8)
    half = 0.055 * np.clip((1 + c.u) / 0.2, 0.1, 1)
    body = np.maximum(np.abs(c.v) - half, np.abs(c.u) - 1)
    light = c.lambert(*c.roll(c.v / 0.06))
    c.paint(body, main, light)
    c.paint(np.maximum(body, 0.45 - c.u), second, light)
    c.paint(np.maximum(body, c.u + 0.82), np.array([222, 190, 150]) if shape[1] < 0.5 else _DARK, light)
    c.paint(np.maximum(np.abs(c.v) - 0.018, np.abs(c.u - 0.65) - 0.25), np.array([220, 220, 222]))


def _phone(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    main = colours[0]
    case = _DARK if shape[1] < 0.6 else main
    u, v, sdf = _slab(c, (1.0, 0.5), 0.07, 0.14, case, case * 0.8)
    if shape[2] < 0.6:  # face up
        sheen = 0.14 * np.clip(1 - np.abs(u + v - 0.3) / 0.35, 0, 1)
        c.paint(sdf + 0.04, np.array([26, 28, 34]), 1.0, sheen)
    else:
        lens = rounded_box(u + 0.72, v + 0.22, 0.2, 0.17, 0.07)
        c.paint(lens, case * 0.7)
        for k in (-0.08, 0.08):
            c.paint(circle(u + (0.72 + k), v + 0.22, 0.06), np.array([16, 18, 24]))


def _fruit(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    orange = shape[1] < 0.45
    skin = (
        np.array([238, 146, 40])
        if orange
        else np.array([(196, 44, 40), (150, 182, 70), (214, 120, 60)][int(shape[2] * 3)])
    )
    gx, gy = c.ground
    for high in (0.1, 0.8, 1.5):
        x, y = gx - (high * c.fall[0]), gy - (0.7 * c.drop + high * c.fall[1])
        c.cast(circle(x, y, 0.55 + 0.35 * np.sin(high * 2)), 0.5, 0.9 - 0.2 * high)
    x, y = c.x, c.y * c.squash  # a ball is round in the picture
    far = np.clip(circle(x, y, 0.0), 0, 0.9) / 0.9
    out = np.sqrt(np.clip(1 - far * far, 0, 1))
    down = y / 0.9
    normal = (x / 0.9, down * c.squash + out * c.rise, out * c.squash - down * c.rise)
    pits = 1 + 0.03 * np.sin(x * 60) * np.sin(y * 57 + 2 * np.sin(x * 31)) * orange
    streak = 1 + 0.1 * np.sin(6 * np.arctan2(y + 0.2, x) + shape[3] * 6) * (not orange)
    c.paint(
        circle(x, y, 0.9), skin, c.lambert(*normal) * pits * streak * (0.8 + 0.25 * out), 0.45 * c.glint(*normal, 30)
    )
    stem = rounded_box(x - 0.03, y + 0.42, 0.035, 0.05 if orange else 0.16, 0.03)
    c.paint(circle(x - 0.03, y + 0.34, 0.1), skin * 0.6, opacity=0.6)
    c.paint(stem, np.array([86, 66, 40]))


def _spoon(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    metal = np.array([196, 198, 202]) if shape[1] < 0.6 else np.array([150, 104, 66])
    gx, gy = c.ground
    a, b = c.turn(gx - 0.03, gy - 0.07)
    c.cast(np.minimum(rounded_box(a - 0.2, b, 0.75, 0.05, 0.04), circle((a + 0.72) * 0.75, b, 0.2)), 0.14, 0.8)
    stick = rounded_box(c.u - 0.25, c.v, 0.75, 0.045, 0.04) - 0.02 * np.clip(c.u, 0, 1)
    c.paint(stick, metal, c.lambert(*c.roll(c.v / 0.08)))
    scoop = circle((c.u + 0.72) * 0.75, c.v, 0.2)
    c.paint(scoop, metal, 1.08)
    c.paint(
        scoop + 0.03,
        metal,
        0.82 - 0.5 * (c.x * c.sun[0] + (c.y - 0.0) * c.sun[1]) * 0.3,
        0.5 * c.soft(np.abs(scoop + 0.12) - 0.015),
    )


def _box(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    main, second, accent = colours
    half = (0.7 + 0.2 * shape[1], 0.5 + 0.2 * shape[2])
    u, v, sdf = _slab(c, half, 0.35 + 0.4 * shape[3], 0.03, main, main)
    kinds = ["band", "stripes", "print", "dots", "flowers", "zigzag", "checks"]
    weights = decorate(kinds[int(shape[4] * len(kinds))], u * 0.9, v + half[1], c.soft, rng)
    c.paint(sdf + 0.03, blend(main, second, accent, weights), 1.03)


def _case(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    main = colours[0] * 0.75
    _, v, sdf = _slab(c, (1.0, 0.42), 0.22, 0.38, main, main)
    normal = c.roll(v / 0.44)
    c.paint(sdf, main, c.lambert(*normal), 0.4 * c.streak(v / 0.44))
    c.paint(np.maximum(np.abs(v - 0.16) - 0.012, sdf + 0.02), main * 0.5)


PAINTERS: dict[str, Callable[[Canvas, Shape, np.ndarray, np.random.Generator], None]] = {
    "Book": _book,
    "Notebook": _notebook,
    "Pen": _pen,
    "Phone": _phone,
    "Fruit": _fruit,
    "Spoon": _spoon,
    "Box": _box,
    "Case": _case,
}
