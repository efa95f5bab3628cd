"""Hand removal: the object-only half of a pair.

Whatever the remover, pixels outside its hole are the video's own, to the bit.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

HOLE_MARGIN = 0.012  # of the crop's side: swallows soft edges and the contact shadow
SHADOW_MARGIN = 0.03  # of the side, off the objects: a shadow at the hole's edge would be painted all through it
MIN_HOLE_MARGIN = 4  # source pixels: what video compression smears over a hand's edge


@dataclass(frozen=True, eq=False)
class RemovalRequest:
    """A crop whose hands are to go.

    Attributes:
        key: sample key; all randomness comes from it.
        hoi: uint8 (S, S, 3).
        hand: bool (S, S), every hand and forearm.
        hole: bool (S, S), what must be replaced; contains `hand`.
        objects: bool (S, S), the visible pixels of all labelled objects.
        plate: uint8 (S, S, 3), the same window of the clip at a moment without hands, or None.
    """

    key: str
    hoi: np.ndarray
    hand: np.ndarray
    hole: np.ndarray
    objects: np.ndarray
    plate: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Removed:
    """A crop without hands.

    Attributes:
        obj: uint8 (S, S, 3).
        hole: bool (S, S), contains the request's; outside it `obj` equals `hoi`.
        name: what did it, `remover:method`.
    """

    obj: np.ndarray
    hole: np.ndarray
    name: str


class HandRemover(Protocol):
    """Anything that removes hands; it sees the crops of a clip that are ready together and answers in their order."""

    def __call__(self, requests: Iterable[RemovalRequest]) -> Iterator[Removed]:
        """Remove the hands from each crop."""
        ...


class OpenCVRemover:
    """Removes hands on the CPU: from a clean plate where the camera stands still, else by Telea's inpainting.

    Args:
        max_difference: mean absolute difference, of 255, up to which a plate shows the same view.
        shadow_difference: difference, of 255, from which a pixel next to the hole is the hand's shadow.
        shadow_reach: how far shadows are followed, as a share of the side.
    """

    def __init__(self, max_difference: float = 4.0, shadow_difference: float = 6.0, shadow_reach: float = 0.12) -> None:
        self.max_difference = max_difference
        self.shadow_difference = shadow_difference
        self.shadow_reach = shadow_reach

    def __call__(self, requests: Iterable[RemovalRequest]) -> Iterator[Removed]:
        """Remove the hands from each crop."""
        for request in requests:
            yield self._from_plate(request) or _inpaint(request)

    def _from_plate(self, request: RemovalRequest) -> Removed | None:
        if request.plate is None:
            return None
        side = request.hole.shape[0]
        sigma = side / 256
        difference = cv2.absdiff(_blur(request.hoi, sigma), _blur(request.plate, sigma))
        difference = cv2.cvtColor(difference, cv2.COLOR_RGB2GRAY)
        reach = 2 * round(self.shadow_reach * side) + 1
        shadow = (difference > self.shadow_difference) & _dilate(request.hole, np.ones((reach, reach), np.uint8))
        hole = request.hole | dilate(_connected(shadow, request.hole), round(2 * sigma))
        if hole.all() or difference[~hole].mean() > self.max_difference:
            return None
        return Removed(_paste(request, hole, request.plate), hole, "opencv:plate")


def hole_around(hand: np.ndarray, crop_side: int) -> np.ndarray:
    """The hand mask with the margin that removal needs.

    Args:
        hand: bool (S, S).
        crop_side: side of the crop in source pixels.
    """
    size = hand.shape[0]
    return dilate(hand, max(1, round(max(HOLE_MARGIN, MIN_HOLE_MARGIN / crop_side) * size)))


def dilate(region: np.ndarray, radius: int) -> np.ndarray:
    """All pixels of a bool (H, W) within `radius` pixels of the region."""
    return _dilate(region, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2))


def _inpaint(request: RemovalRequest, working_size: int = 256) -> Removed:
    """Telea's fast marching at a small size, with the grain of the surroundings."""
    size = request.hole.shape[0]
    small = (min(size, working_size),) * 2
    wide = request.hole | (dilate(request.hand, round(SHADOW_MARGIN * size)) & ~request.objects)
    hole = (cv2.resize(wide.astype(np.float32), small, interpolation=cv2.INTER_AREA) > 0).view(np.uint8)
    picture = cv2.resize(request.hoi, small, interpolation=cv2.INTER_AREA)
    painted = cv2.inpaint(picture, hole, 3, cv2.INPAINT_TELEA)
    painted = cv2.resize(painted, (size, size), interpolation=cv2.INTER_CUBIC)
    ring = dilate(wide, max(2, size // 24)) & ~wide
    if ring.any():
        grain = request.hoi[ring].astype(np.float32) - _blur(request.hoi, 1.0)[ring]
        # Median instead of mean: edges in the ring are not grain.
        sigma = 1.4826 * float(np.median(np.abs(grain)))
        seed = int.from_bytes(hashlib.sha256(request.key.encode()).digest()[:8], "little")
        noise = np.random.default_rng(seed).standard_normal((size, size, 1), np.float32) * sigma
        painted = (painted + noise).round().clip(0, 255).astype(np.uint8)
    return Removed(_paste(request, wide, painted), wide, "opencv:telea")


def _paste(request: RemovalRequest, hole: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """Blend `painted` into the hole; the feather lies between the hole's edge and the hand."""
    depth = cv2.distanceTransform(hole.view(np.uint8), cv2.DIST_L2, 3)
    feather = max(1.0, float(depth[request.hand].min(initial=hole.shape[0])))
    weight = np.minimum(depth / feather, 1)
    blend = cv2.blendLinear(painted, request.hoi, weight, 1 - weight)
    return np.asarray(cv2.copyTo(blend, hole.view(np.uint8), request.hoi.copy()))


def _connected(region: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The part of `region` that hangs together with `to`."""
    number, component = cv2.connectedComponents((region | to).view(np.uint8))
    chosen = np.zeros(number, bool)
    chosen[component[to]] = True
    return chosen[component] & region


def _dilate(region: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.dilate(region.view(np.uint8), kernel).view(bool)


def _blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)
