"""Painted decoration: where on a surface an object's second and accent colours go."""

from collections.abc import Callable

import numpy as np

Weights = tuple[np.ndarray, np.ndarray]
_Pattern = Callable[[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray], np.random.Generator], Weights]


def decorate(
    kind: str, s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> Weights:
    """Draw a pattern on a surface.

    Args:
        kind: a key of PATTERNS.
        s: (H, W) position along the surface, units.
        h: (H, W) position across it, units, 0 at its upper edge.
        soft: turns a signed distance in units into a cover.
        rng: generator of the object's looks.

    Returns:
        Cover of the second colour and of the accent, (H, W) in [0, 1].
    """
    second, accent = PATTERNS[kind](s, h, soft, rng)
    return second.astype(np.float32, copy=False), accent.astype(np.float32, copy=False)


def _plain(s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], _: np.random.Generator) -> Weights:
    return np.zeros_like(s), np.zeros_like(s)


def _band(s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> Weights:
    middle, half = rng.uniform(0.3, 0.6), rng.uniform(0.1, 0.2)
    return soft(np.abs(h - middle) - half), soft(np.abs(np.abs(h - middle) - half * 1.25) - 0.025)


def _rings(s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> Weights:
    period, share = rng.uniform(0.2, 0.34), rng.uniform(0.2, 0.5)
    lines = np.abs((h / period) % 1 - 0.5) - share / 2
    return soft(lines * period), soft(np.abs(h - 0.08) - 0.03)


def _stripes(
    s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> Weights:
    period, share = rng.uniform(0.2, 0.42), rng.uniform(0.3, 0.6)
    place = (s / period + rng.random()) % 1
    return soft((np.abs(place - 0.5) - share / 2) * period), soft((np.abs((place + 0.5) % 1 - 0.5) - 0.06) * period)


def _staggered(
    s: np.ndarray, h: np.ndarray, period: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = np.floor(h / period)
    a = (s / period + 0.5 * (row % 2) + rng.random()) % 1 - 0.5
    return a * period, ((h / period) % 1 - 0.5) * period, row


def _dots(s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> Weights:
    period = rng.uniform(0.22, 0.38)
    a, b, row = _staggered(s, h, period, rng)
    dot = soft(np.sqrt(a * a + b * b) - period * rng.uniform(0.2, 0.32))
    odd = row % 3 == 1 if rng.random() < 0.5 else np.zeros_like(row)
    return dot * (1 - odd), dot * odd


def _checks(
    s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> Weights:
    period = rng.uniform(0.24, 0.44)
    a = soft((np.abs((s / period) % 1 - 0.5) - 0.25) * period)
    b = soft((np.abs((h / period) % 1 - 0.5) - 0.25) * period)
    return 0.5 * (a + b), 0.25 * a * b


def _flowers(
    s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> Weights:
    period = rng.uniform(0.4, 0.58)
    a, b, _ = _staggered(s, h, period, rng)
    far, turn = np.sqrt(a * a + b * b), np.arctan2(b, a)
    petals = far - period * (0.27 + 0.12 * np.cos(int(rng.integers(4, 7)) * turn))
    return soft(petals), soft(far - 0.11 * period)


def _dip(s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> Weights:
    """Two-tone glaze with a wavy border."""
    wave = 0.05 * np.sin(s * rng.uniform(3, 6) + rng.uniform(0, 6)) + 0.03 * np.sin(s * 11)
    level = rng.uniform(0.35, 0.65)
    return soft(level + wave - h), soft(np.abs(h - wave - level) - 0.02) * float(rng.random() < 0.5)


def _zigzag(
    s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> Weights:
    period, middle = rng.uniform(0.26, 0.4), rng.uniform(0.35, 0.55)
    wave = np.abs((s / period) % 1 - 0.5) * period
    return soft(np.abs(h - middle - wave + period / 4) - 0.06), soft(np.abs(h - middle - wave - period / 4) - 0.03)


def _print(s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> Weights:
    """One badge: a disc, a heart or a star on the side."""
    a, b = s - rng.uniform(-0.6, 0.6), h - rng.uniform(0.42, 0.55)
    radius, kind = rng.uniform(0.24, 0.34), rng.integers(3)
    if kind == 0:
        far = np.sqrt(a * a + b * b)
        return soft(far - radius), soft(far - 0.62 * radius) - soft(far - 0.35 * radius)
    if kind == 1:
        heart = np.sqrt(a * a + np.square(b + 0.75 * np.abs(a) ** 1.2 - 0.1 * radius)) - radius
        return soft(heart), soft(np.maximum(heart + 0.1, -heart - 0.14))
    star = np.sqrt(a * a + b * b) - radius * (0.75 + 0.3 * np.cos(5 * np.arctan2(a, -b)))
    return soft(star), soft(star + 0.12)


def _speckle(
    s: np.ndarray, h: np.ndarray, soft: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> Weights:
    table = rng.random(997).astype(np.float32)
    value = table[(np.floor(s * 34).astype(int) * 73 + np.floor(h * 34).astype(int) * 151) % 997]
    return 0.8 * (value < 0.07), 0.7 * (value > 0.96)


PATTERNS: dict[str, _Pattern] = {
    "plain": _plain,
    "band": _band,
    "rings": _rings,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "flowers": _flowers,
    "dip": _dip,
    "zigzag": _zigzag,
    "print": _print,
    "speckle": _speckle,
}
