"""Layouts of the pairs, from HOI4D's keypoints where they fit the hand mask, else from the mask alone."""

import numpy as np
import torch

from data_prep.sources import Box
from hoi_lightning.hand_proxy import Layout, crop_layout, fit_layout, proxy_iou

SHRINK = 4  # source pixels to one of `whole_hand`


def whole_hand(hand: np.ndarray) -> np.ndarray:
    """Shrink a frame's hand mask, bool (H, W), by `SHRINK` and make it square, with nothing outside the frame."""
    small = hand[SHRINK // 2 :: SHRINK, SHRINK // 2 :: SHRINK]
    square = np.zeros((-(-max(hand.shape) // SHRINK),) * 2, bool)
    square[: small.shape[0], : small.shape[1]] = small
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
    if keypoints is None:
        scale = hand.shape[0] / (crop[2] - crop[0])
        centroid = ((np.argwhere(whole)[:, ::-1].mean(0) + 0.5) * SHRINK - crop[:2]) * scale if whole.any() else None
        layout = fit_layout(hand, centroid=centroid)
    else:
        window = torch.tensor(crop, dtype=torch.float64) / (whole.shape[0] * SHRINK / 2) - 1
        in_frame = fit_layout(whole, (keypoints + 0.5) / SHRINK).to_tensor().double()
        layout = Layout.from_tensor(crop_layout(in_frame, window))
    return layout, proxy_iou(layout, hand)
