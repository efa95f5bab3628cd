"""Frames of a clip without any hand: they show a still object whole, and what a hand hides."""

from functools import cache

import cv2
import numpy as np

from data_prep.labels import LabelMap, among, reached
from data_prep.sources import Box, Clip, Fault, Moment

STILL_IOU = 0.8  # of the object's visible pixels in two frames between which it has not moved


class Reference:
    """A frame without any hand.

    Args:
        frame: its number.
        labels: its labels.
    """

    def __init__(self, frame: int, labels: LabelMap) -> None:
        self.frame, self.labels = frame, labels
        self.box = cache(labels.box)  # a clip asks for the same object again and again

    def shows_still(self, labels: LabelMap, touched: tuple[int, ...], hands: tuple[int, ...]) -> Box | None:
        """The object's box here, where the object covers the same pixels in another frame, as far as no hand hides it.

        Args:
            labels: of the other frame.
            touched: labels of the object.
            hands: labels of all hands.

        Returns:
            The box, or None where the object has moved or is not in both frames.
        """
        then_box, now_box = self.box(touched), labels.box(touched)
        if then_box is None or now_box is None:
            return None
        low, high = np.minimum(then_box, now_box), np.maximum(then_box, now_box)
        around = int(low[0]), int(low[1]), int(high[2]), int(high[3])
        shown = labels.at(around)
        seen = ~reached(among(shown, hands))
        then = among(self.labels.at(around), touched)
        now, visible = among(shown, touched) & seen, then & seen
        union = np.count_nonzero(now | visible)
        if union <= 0.1 * np.count_nonzero(then) or np.count_nonzero(now & visible) < STILL_IOU * union:
            return None
        return then_box


def find_references(clip: Clip, candidates: list[Moment], frames: list[int]) -> list[Reference]:
    """The nearest frames without any hand before and after the contact, as far as there are some.

    Args:
        clip: the clip.
        candidates: its moments of contact.
        frames: all its frames.
    """
    if not candidates or not clip.is_video:
        return []
    step = max(1, len(frames) // 60)
    first, last = frames.index(candidates[0].frame), frames.index(candidates[-1].frame)
    found = [
        _first_hand_free(clip, frames[:first][::-step]),
        _first_hand_free(clip, frames[last + 1 :: step]),
    ]
    return [reference for reference in found if reference is not None]


def _first_hand_free(clip: Clip, frames: list[int]) -> Reference | None:
    for frame in frames:
        try:
            labels = clip.labels(frame)
        except Fault:
            continue  # such a frame is in the ledger already, as outside any contact event
        if cv2.countNonZero(labels.values) and labels.box(clip.hand_labels.values()) is None:
            return Reference(frame, labels)
    return None
