"""Intervals of means whose samples are not independent."""

import numpy as np


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray, seed: int, draws: int = 2000, coverage: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Percentile interval of the mean; whole groups are drawn, as pictures of one object are not independent.

    Args:
        values: (N,).
        groups: label of each value, (N,).
        seed: of the draws.
        draws: bootstrap replicates.
        coverage: of the interval; the upper end at 0.9 is the one-sided 95 % bound.

    Returns:
        Lower and upper end; None twice for fewer than two groups, which say nothing about their spread.
    """
    labels, member = np.unique(groups, return_inverse=True)
    if len(labels) < 2:
        return None, None
    sums, counts = np.bincount(member, values), np.bincount(member)
    picks = np.random.default_rng(seed).integers(len(labels), size=(draws, len(labels)))
    tails = 50 * (1 - coverage), 50 * (1 + coverage)
    low, high = np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), tails)
    return float(low), float(high)
