"""Label maps: small questions asked of uint8 (H, W)."""

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

from data_prep.sources import Box, Side

REACH = 4  # source pixels between a hand and what it touches


def bounding_box(region: np.ndarray) -> Box | None:
    """Box of the non-zero pixels of a bool or uint8 (H, W), None where there are none."""
    x, y, width, height = cv2.boundingRect(region.astype(np.uint8, copy=False))
    return (x, y, x + width, y + height) if width else None


def among(labels: np.ndarray, chosen: Iterable[int]) -> np.ndarray:
    """Bool (H, W) of the pixels whose label is one of `chosen`."""
    table = np.zeros(256, np.uint8)
    table[list(chosen)] = 1
    return cv2.LUT(labels, table).view(bool)


def touched_by_reach(
    labels: np.ndarray, hands: Mapping[Side, int], objects: Iterable[tuple[int, ...]]
) -> tuple[Side, tuple[int, ...]] | None:
    """Find the first hand within `REACH` of an object, and the object of which most lies there.

    Args:
        labels: uint8 (H, W).
        hands: label of each hand, the one that goes first first.
        objects: labels of each object.
    """
    kernel = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
    for side, label in hands.items():
        hand = (labels == label).view(np.uint8)
        box = bounding_box(hand)
        if box is None:
            continue
        around = window(box, REACH, labels.shape)
        near = cv2.dilate(hand[around], kernel).view(bool)
        counts = np.bincount(labels[around][near], minlength=256)
        touched = max(objects, key=lambda group: counts[list(group)].sum())
        if counts[list(touched)].any():
            return side, touched
    return None


def window(box: Box, margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Slices of a box with a margin, as far as a picture of `shape` (H, W, …) goes."""
    return (
        slice(max(box[1] - margin, 0), min(box[3] + margin, shape[0])),
        slice(max(box[0] - margin, 0), min(box[2] + margin, shape[1])),
    )
