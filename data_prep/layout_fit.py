"""Layouts of the pairs, from HOI4D's keypoints where they fit the hand mask, else from the mask alone."""

import numpy as np

from data_prep.labels import LabelMap
from data_prep.sources import Box
from hoi_lightning.hand_proxy import Layout, fit_layout, proxy_iou

SHRINK = 4  # source pixels to one of `whole_hand`


def whole_hand(labels: LabelMap, hand: int) -> np.ndarray:
    """The mask of one label in a frame, shrunk by `SHRINK` and made square with nothing outside it: bool (S, S)."""
    x, y = (value // SHRINK for value in labels.corner)
    small = labels.values[SHRINK // 2 :: SHRINK, SHRINK // 2 :: SHRINK] == hand
    square = np.zeros((-(-max(labels.frame) // SHRINK),) * 2, bool)
    square[y : y + small.shape[0], x : x + small.shape[1]] = small
    return square


def on_hand(keypoints: np.ndarray, hand: np.ndarray) -> bool:
    """Whether keypoints belong to a hand: their box holds pixels of its mask.

    Args:
        keypoints: (21, 2) source pixels.
        hand: bool (S, S) as from `whole_hand`.
    """
    low = np.floor(keypoints.min(0) / SHRINK).clip(0, hand.shape[0]).astype(int)
    high = np.ceil(keypoints.max(0) / SHRINK).clip(0, hand.shape[0]).astype(int)
    return bool(hand[low[1] : high[1], low[0] : high[0]].any())


def fit_crop_layout(
    hand: np.ndarray, whole: np.ndarray, keypoints: np.ndarray | None, crop: Box
) -> tuple[Layout, float]:
    """Fit the layout of one hand and measure how well its proxy covers it.

    The direction comes from the whole frame: a crop that cuts the forearm off would turn it. So does the box where
    there are keypoints; without, it is estimated in the crop, where the hand is large.

    Args:
        hand: bool (S, S), the hand with its forearm in the crop, not empty.
        whole: bool (S', S'), the same hand as from `whole_hand`.
        keypoints: (21, 2) source pixels, pixel centres at integers, or None.
        crop: the crop's window in source pixels.

    Returns:
        The layout in the crop's NDC and the IoU of its proxy with the mask there.
    """
    scale = hand.shape[0] / (crop[2] - crop[0])
    centroid = None
    rows, columns = np.divmod(np.flatnonzero(whole), whole.shape[1])
    if rows.size:
        centroid = ((np.array([columns.mean(), rows.mean()]) + 0.5) * SHRINK - crop[:2]) * scale
    points = None if keypoints is None else (keypoints + 0.5 - crop[:2]) * scale
    layout = fit_layout(hand, points, centroid)
    return layout, proxy_iou(layout, hand)
