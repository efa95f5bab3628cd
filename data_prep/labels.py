"""Label maps: small questions asked of uint8 (H, W)."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.sources import Box, Side

REACH = 4  # source pixels between a hand and what it touches
_REACHED = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Labels of a frame, of which only a part is held: all around it is background.

    Attributes:
        values: uint8 (h, w), that part; not empty.
        corner: x and y of its first pixel, multiples of 8.
        frame: width and height of the frame.
    """

    values: np.ndarray
    corner: tuple[int, int]
    frame: tuple[int, int]

    @classmethod
    def whole(cls, values: np.ndarray) -> "LabelMap":
        """Labels of all of a frame, uint8 (H, W)."""
        return cls(values, (0, 0), (values.shape[1], values.shape[0]))

    def at(self, box: Box) -> np.ndarray:
        """Labels in a box of the frame, uint8 (h, w); to be read only."""
        x0, y0 = box[0] - self.corner[0], box[1] - self.corner[1]
        x1, y1 = box[2] - self.corner[0], box[3] - self.corner[1]
        inside = self.values[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        if inside.shape == (y1 - y0, x1 - x0):
            return inside
        labels = np.zeros((y1 - y0, x1 - x0), np.uint8)
        labels[max(-y0, 0) :, max(-x0, 0) :][: inside.shape[0], : inside.shape[1]] = inside
        return labels

    def box(self, chosen: Collection[int]) -> Box | None:
        """Box in the frame of the pixels whose label is one of `chosen`, None where there are none."""
        box = bounding_box(among(self.values, chosen))
        x, y = self.corner
        return None if box is None else (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def bounding_box(region: np.ndarray) -> Box | None:
    """Box of the non-zero pixels of a bool or uint8 (H, W), None where there are none."""
    x, y, width, height = cv2.boundingRect(region.view(np.uint8))
    return (x, y, x + width, y + height) if width else None


def among(labels: np.ndarray, chosen: Iterable[int]) -> np.ndarray:
    """Bool (H, W) of the pixels whose label is one of `chosen`."""
    first, *others = chosen
    found = labels == first
    for label in others:
        found |= labels == label
    return found


def share(region: np.ndarray) -> float:
    """Mean of a bool (H, W)."""
    return cv2.countNonZero(region.view(np.uint8)) / region.size


def touched_by_reach(
    labels: np.ndarray, hands: Mapping[Side, int], objects: Iterable[tuple[int, ...]]
) -> tuple[Side, tuple[int, ...]] | None:
    """Find the first hand within `REACH` of an object, and the object of which most lies there.

    Args:
        labels: uint8 (H, W).
        hands: label of each hand, the one that goes first first.
        objects: labels of each object.
    """
    no_hand = labels != 0
    for label in hands.values():
        no_hand &= labels != label
    box = bounding_box(no_hand)
    if box is None:
        return None
    around = window(box, REACH, labels.shape)
    labels, no_hand = labels[around], no_hand[around]
    for side, label in hands.items():
        near = reached(labels == label) & no_hand
        counts = np.bincount(labels[near], minlength=256)
        touched = max(objects, key=lambda group: counts[list(group)].sum())
        if counts[list(touched)].any():
            return side, touched
    return None


def reached(hand: np.ndarray) -> np.ndarray:
    """All pixels of a bool (H, W) within `REACH` of a hand, along rows and columns."""
    return np.asarray(cv2.dilate(hand.view(np.uint8), _REACHED)).view(bool)


def window(box: Box, margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Slices of a box with a margin, as far as a picture of `shape` (H, W, …) goes."""
    return (
        slice(max(box[1] - margin, 0), min(box[3] + margin, shape[0])),
        slice(max(box[0] - margin, 0), min(box[2] + margin, shape[1])),
    )
