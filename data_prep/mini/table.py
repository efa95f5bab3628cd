"""Table tops at full resolution: wood, checked cloth, stone, linen, plain."""

import cv2
import numpy as np

SIZE = (1920, 1080)
_HALF = (960, 540)

# dark to light RGB pairs
_WOODS = [
    ((92, 62, 44), (140, 98, 68)),
    ((128, 88, 54), (178, 132, 88)),
    ((64, 46, 38), (100, 74, 58)),
    ((150, 122, 92), (196, 168, 132)),
]
_CLOTHS = [
    ((150, 176, 164), (196, 212, 200)),
    ((126, 140, 170), (190, 198, 214)),
    ((176, 160, 150), (226, 216, 204)),
    ((118, 100, 128), (164, 150, 172)),
    ((86, 110, 96), (128, 152, 132)),
    ((190, 168, 120), (222, 208, 170)),
]
_PLAINS = [
    (212, 214, 210),
    (170, 182, 190),
    (118, 130, 140),
    (96, 108, 98),
    (186, 176, 160),
    (70, 76, 88),
    (196, 186, 196),
]


def draw_table(light: np.ndarray, rng: np.random.Generator, tint: np.ndarray) -> np.ndarray:
    """Draw a table top.

    Args:
        light: (3,) unit vector towards the light; that side of the table is brighter.
        rng: the clip's generator.
        tint: (3,) colour of the light.

    Returns:
        float32 (1080, 1920, 3) RGB in 0..255, before anything lies on it.
    """
    kind = [_wood, _checks, _stone, _linen, _plain][rng.integers(5)]
    half = kind(rng)
    x = np.linspace(-1, 1, _HALF[0], dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, _HALF[1], dtype=np.float32)[:, None]
    falloff = 1 + rng.uniform(0.04, 0.16) * (float(light[0]) * x + float(light[1]) * y) - 0.07 * (x * x + y * y)
    return cv2.resize(half * (falloff[..., None] * tint), SIZE, interpolation=cv2.INTER_LINEAR)


def noise(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int] = _HALF) -> np.ndarray:
    """Smooth noise of about unit deviation, float32 (height, width), with `cells` (across, down) random values."""
    coarse = rng.normal(0, 1, (cells[1], cells[0])).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def _mix(pair: tuple[tuple[int, int, int], tuple[int, int, int]], share: np.ndarray) -> np.ndarray:
    dark, light = np.array(pair, np.float32)
    return dark + np.clip(share, 0, 1)[..., None] * (light - dark)


def _turned(rng: np.random.Generator, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    angle = np.radians(degrees)
    x = np.arange(_HALF[0], dtype=np.float32)[None, :] - _HALF[0] / 2
    y = np.arange(_HALF[1], dtype=np.float32)[:, None] - _HALF[1] / 2
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return x * cos + y * sin + rng.uniform(0, 100), y * cos - x * sin + rng.uniform(0, 100)


def _wood(rng: np.random.Generator) -> np.ndarray:
    big = (1200, 1200)
    streaks = 0.5 * noise(rng, (9, 160), big) + 0.35 * noise(rng, (24, 420), big)
    rings = np.sin(
        2 * np.pi * (np.arange(1200, dtype=np.float32)[:, None] / rng.uniform(60, 140) + 0.9 * noise(rng, (4, 7), big))
    )
    planks = np.floor(np.arange(1200) / rng.integers(120, 260)).astype(int)
    tint = rng.normal(0, 0.1, planks.max() + 1).astype(np.float32)[planks][:, None]
    seam = np.diff(planks, prepend=0) > 0
    share = 0.5 + 0.22 * streaks + 0.16 * rings + tint - 0.5 * (seam | np.roll(seam, 1))[:, None]
    turn = cv2.getRotationMatrix2D((600, 600), rng.uniform(0, 180), 1.0)
    turn[:, 2] += np.array([_HALF[0], _HALF[1]]) / 2 - 600
    share = cv2.warpAffine(share.astype(np.float32), turn, _HALF, borderMode=cv2.BORDER_REFLECT)
    return _mix(_WOODS[rng.integers(len(_WOODS))], share)


def _checks(rng: np.random.Generator) -> np.ndarray:
    u, v = _turned(rng, rng.uniform(-40, 40))
    period = rng.uniform(34, 80)
    a, b = (np.clip(0.5 + 6 * np.sin(2 * np.pi * w / period), 0, 1) for w in (u, v))
    share = 0.5 * (a + b) if rng.random() < 0.5 else a * (1 - b) + b * (1 - a)
    return _mix(_CLOTHS[rng.integers(len(_CLOTHS))], 0.1 + 0.8 * share + 0.05 * noise(rng, (40, 24)))


def _stone(rng: np.random.Generator) -> np.ndarray:
    share = np.full((_HALF[1], _HALF[0]), 0.5, np.float32)
    for strength, cells in ((0.14, 12), (0.12, 48), (0.12, 200), (0.1, 480)):
        share += strength * noise(rng, (cells, cells * 9 // 16))
    grey = rng.uniform(70, 170)
    tone = np.array([grey, grey, grey]) + rng.normal(0, 10, 3)
    return _mix((tuple(tone * 0.72), tuple(tone * 1.25)), share)


def _linen(rng: np.random.Generator) -> np.ndarray:
    u, v = _turned(rng, rng.uniform(-60, 60))
    share = 0.5 + 0.1 * np.sin(u * 1.3) * np.sin(v * 1.3) + 0.1 * noise(rng, (16, 9)) + 0.05 * noise(rng, (480, 270))
    if rng.random() < 0.6:  # woven stripes
        share = share + 0.35 * (np.sin(2 * np.pi * u / rng.uniform(50, 130)) > rng.uniform(0.3, 0.9))
    return _mix(_CLOTHS[rng.integers(len(_CLOTHS))], share)


def _plain(rng: np.random.Generator) -> np.ndarray:
    tone = np.array(_PLAINS[rng.integers(len(_PLAINS))], np.float32) + rng.normal(0, 6, 3).astype(np.float32)
    return tone * (1 + 0.025 * noise(rng, (6, 4)) + 0.012 * noise(rng, (240, 135)))[..., None]
