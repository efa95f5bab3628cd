"""Flat materials, seen straight from above: wood, stone, cloth, linen, plain; for tables, floors and mats.

Each is uint8 (SIDE, SIDE, 3) RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 640  # texels across a texture

Pair = tuple[tuple[int, int, int], tuple[int, int, int]]

# dark to light
_WOODS: list[Pair] = [
    ((104, 70, 48), (150, 106, 74)),
    ((138, 98, 64), (182, 138, 96)),
    ((72, 52, 42), (106, 80, 64)),
    ((160, 132, 100), (202, 176, 142)),
    ((176, 150, 120), (214, 192, 164)),
]
_CLOTHS: list[Pair] = [
    ((150, 176, 164), (206, 216, 206)),
    ((126, 140, 164), (204, 208, 214)),
    ((176, 160, 150), (230, 222, 212)),
    ((156, 146, 160), (212, 206, 212)),
    ((110, 134, 120), (176, 192, 178)),
    ((190, 168, 128), (226, 214, 184)),
    ((204, 168, 162), (236, 222, 216)),
    ((196, 192, 184), (236, 234, 228)),
]
_PLAINS = [
    (232, 232, 228),
    (214, 214, 212),
    (176, 186, 192),
    (126, 136, 144),
    (196, 188, 174),
    (224, 214, 198),
    (84, 88, 96),
    (204, 198, 208),
    (166, 178, 166),
]


def noise(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Smooth noise of about unit deviation, float32 (height, width), with `cells` (across, down) random values."""
    coarse = rng.standard_normal((cells[1], cells[0]), np.float32)
    if max(cells) <= SIDE // 16:  # smooth enough for straight lines at the end, which are cheaper
        coarse = cv2.resize(coarse, (size[0] // 4, size[1] // 4), interpolation=cv2.INTER_CUBIC)
        return cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def mix(pair: Pair, share: np.ndarray) -> np.ndarray:
    """Colours, uint8 (H, W, 3), between a dark and a light one; `share` (H, W) is clipped to [0, 1]."""
    share = np.clip(share, 0, 1)
    return cv2.merge([cv2.convertScaleAbs(share, alpha=high - low, beta=low) for low, high in zip(*pair, strict=True)])


def _colour(share: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """One colour (3,), times `share` (H, W)."""
    return cv2.merge([cv2.convertScaleAbs(share, alpha=float(part)) for part in tone])


def _grid() -> tuple[np.ndarray, np.ndarray]:
    side = np.arange(SIDE, dtype=np.float32)
    return side[None, :], side[:, None]


def wood(rng: np.random.Generator) -> np.ndarray:
    """Planks along x with grain."""
    y = np.arange(SIDE, dtype=np.float32)[:, None]
    streaks = 0.5 * noise(rng, (5, 110)) + 0.4 * noise(rng, (12, 300))
    rings = np.sin(2 * np.pi * (y / np.float32(rng.uniform(24, 60)) + noise(rng, (3, 5))))
    planks = np.floor(y[:, 0] / rng.uniform(60, 150)).astype(int)
    tint = rng.normal(0, 0.12, planks.max() + 1).astype(np.float32)[planks][:, None]
    seam = (np.diff(planks, prepend=0) > 0)[:, None].astype(np.float32)
    share = 0.5 + 0.2 * streaks + 0.1 * rings + tint - 0.5 * seam
    return mix(_WOODS[rng.integers(len(_WOODS))], share)


def marble(rng: np.random.Generator) -> np.ndarray:
    """Pale or dark stone with veins."""
    cloud = noise(rng, (5, 5)) + 0.5 * noise(rng, (14, 14)) + 0.2 * noise(rng, (50, 50))
    x, y = _grid()
    angle = rng.uniform(0, np.pi)
    along = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) / np.float32(rng.uniform(70, 150))
    phase = along + 0.55 * cloud
    ridge = np.abs(phase - np.rint(phase))
    patchy = np.clip(0.5 + 0.6 * noise(rng, (7, 7)), 0, 1)
    veins = np.exp(-ridge * 26) * patchy + 0.35 * np.exp(-np.abs(cloud * 0.5) * 26) * patchy
    pale = rng.random() < 0.7
    tone = np.array(rng.uniform(205, 236) if pale else rng.uniform(70, 130)) + rng.normal(0, 4, 3)
    depth = rng.uniform(0.4, 0.65) if pale else 1.5
    share = np.clip(veins * (0.8 if pale else 0.5), 0, 1)
    base = 1 + 0.025 * cloud
    return _colour(base * (1 - share) + share * np.float32(depth), tone)


def granite(rng: np.random.Generator) -> np.ndarray:
    """Speckled stone."""
    share = 0.5 + 0.12 * noise(rng, (10, 10)) + 0.12 * noise(rng, (90, 90)) + 0.16 * noise(rng, (300, 300))
    tone = np.array(rng.uniform(90, 200)) + rng.normal(0, 7, 3)
    return mix((tuple(tone * 0.72), tuple(tone * 1.2)), share)


def checks(rng: np.random.Generator) -> np.ndarray:
    """Gingham or tartan."""
    x, y = _grid()
    period = SIDE / int(rng.integers(11, 30))  # whole periods: the reflection at the border continues them
    a, b = (np.clip(0.5 + 6 * np.cos(2 * np.pi * w / period), 0, 1) for w in (x, y))
    share = 0.5 * (a + b) if rng.random() < 0.7 else a * (1 - b) + b * (1 - a)
    return mix(_CLOTHS[rng.integers(len(_CLOTHS))], 0.1 + 0.8 * share + 0.04 * noise(rng, (200, 200)))


def linen(rng: np.random.Generator) -> np.ndarray:
    """Woven cloth, at times with stripes."""
    x, y = _grid()
    share = 0.6 + 0.1 * np.sin(x * 1.6) * np.sin(y * 1.6) + 0.08 * noise(rng, (9, 9)) + 0.05 * noise(rng, (300, 300))
    if rng.random() < 0.5:
        share = share + 0.3 * (np.cos(2 * np.pi * y * int(rng.integers(7, 22)) / SIDE) > rng.uniform(0.3, 0.9)) - 0.2
    return mix(_CLOTHS[rng.integers(len(_CLOTHS))], share)


def printed(rng: np.random.Generator) -> np.ndarray:
    """Oilcloth with small scattered figures."""
    # an even number of figures fits the side, and they are symmetric: the reflection at the border continues them
    period = SIDE / float(rng.choice([6, 8, 10, 12]))
    x, y = _grid()
    row = np.floor(y / period)
    a, b = (x / period + 0.5 * (row % 2)) % 1 - 0.5, (y / period) % 1 - 0.5
    far = np.sqrt(a * a + b * b)
    petals = 0.17 + 0.07 * np.cos(float(rng.choice([4, 6])) * np.arctan2(b, a))
    figure = np.clip((petals - far) * period * 0.5 + 0.5, 0, 1) * (1 - 0.3 * (far < 0.07))
    return mix(_CLOTHS[rng.integers(len(_CLOTHS))], 0.95 - 0.6 * figure + 0.04 * noise(rng, (12, 12)))


def plain(rng: np.random.Generator) -> np.ndarray:
    """One colour, a little uneven."""
    tone = np.array(_PLAINS[rng.integers(len(_PLAINS))], np.float32) + rng.normal(0, 5, 3).astype(np.float32)
    uneven = 1 + 0.02 * noise(rng, (5, 5)) + 0.012 * noise(rng, (200, 200))
    return _colour(uneven, tone)


def tiles(rng: np.random.Generator) -> np.ndarray:
    """Large glossy floor tiles."""
    x, y = _grid()
    period = np.float32(rng.uniform(150, 260))
    joint = np.minimum(np.abs(x % period - period / 2), np.abs(y % period - period / 2)) < 1.2
    cloud = noise(rng, (8, 8)) + 0.7 * noise(rng, (26, 26)) + 0.3 * noise(rng, (90, 90))
    tone = np.array(rng.uniform(120, 196)) + rng.normal(0, 5, 3)
    share = (1 + 0.045 * cloud) * (1 - 0.22 * joint)
    return _colour(share, tone)


def carpet(rng: np.random.Generator) -> np.ndarray:
    """Pile carpet."""
    tone = np.array([(96, 84, 88), (132, 124, 116), (84, 98, 112), (150, 140, 124)][rng.integers(4)], np.float32)
    share = 1 + 0.05 * noise(rng, (8, 8)) + 0.1 * noise(rng, (320, 320))
    return _colour(share, tone)


@dataclass(frozen=True)
class Material:
    """A texture and how it is laid out.

    Attributes:
        draw: draws it.
        share: how often it is chosen.
        scale: half-size picture pixels per texel.
    """

    draw: Callable[[np.random.Generator], np.ndarray]
    share: float
    scale: tuple[float, float]


TABLES = [
    Material(wood, 0.26, (0.8, 1.2)),
    Material(marble, 0.17, (1.7, 2.2)),
    Material(granite, 0.08, (1.0, 1.5)),
    Material(checks, 0.09, (0.8, 1.1)),
    Material(linen, 0.12, (0.8, 1.2)),
    Material(printed, 0.08, (0.7, 1.1)),
    Material(plain, 0.2, (1.0, 1.6)),
]
FLOORS = [
    Material(tiles, 0.45, (0.5, 0.7)),
    Material(wood, 0.3, (0.5, 0.7)),
    Material(carpet, 0.25, (0.5, 0.7)),
]


def pick(choices: list[Material], rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw a texture and its scale."""
    material = choices[rng.choice(len(choices), p=[choice.share for choice in choices])]
    return material.draw(rng), rng.uniform(*material.scale)
