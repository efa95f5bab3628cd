"""Hand removal: the object-only half of a pair.

Whatever the remover, pixels outside its hole are the video's own, to the bit.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np

from data_prep.labels import bounding_box, window
from hoi_lightning.errors import InputError

RemoverName = Literal["opencv", "diffusion"]
DEFAULT_WEIGHTS = "stable-diffusion-v1-5/stable-diffusion-inpainting"

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
        category: clean name of what the crop shows, e.g. `ToyCar`.
    """

    key: str
    hoi: np.ndarray
    hand: np.ndarray
    hole: np.ndarray
    objects: np.ndarray
    plate: np.ndarray | None = None
    category: str = "object"


@dataclass(frozen=True, eq=False)
class Removed:
    """A crop without hands.

    Attributes:
        obj: uint8 (S, S, 3).
        hole: bool (S, S), contains the request's; outside it `obj` equals `hoi`.
        name: what did it, `remover:method`.
        sdedit: SDEdit copy of `obj`, uint8 (S, S, 3), or None.
        sdedit_level: its noise level as a share of the schedule, in (0, 1], or None.
    """

    obj: np.ndarray
    hole: np.ndarray
    name: str
    sdedit: np.ndarray | None = None
    sdedit_level: float | None = None


class HandRemover(Protocol):
    """Anything that removes hands; it sees the crops of a clip that are ready together and answers in their order."""

    def __call__(self, requests: Iterable[RemovalRequest]) -> Iterator[Removed]:
        """Remove the hands from each crop."""
        ...


def open_remover(
    name: RemoverName,
    *,
    size: int,
    weights: str | None,
    sdedit: float | None,
    batch_size: int,
    device: str,
    seed: int,
) -> HandRemover:
    """Open a hand remover; a diffusion checkpoint is loaded where it, or the SDEdit copy, needs one.

    Args:
        name: `opencv` takes clean plates or Telea's inpainting, `diffusion` always paints.
        size: side of the crops in pixels.
        weights: hub id or local folder of a diffusers inpainting pipeline; None = `DEFAULT_WEIGHTS` for `diffusion`.
        sdedit: noise level of the SDEdit copy as a share of the schedule, in (0, 1], or None for no copy.
        batch_size: crops painted together; the last batch is filled up, so that bytes do not depend on their number.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        seed: of the diffusion, together with the sample key.

    Raises:
        InputError: the level is out of range, SDEdit lacks a checkpoint, or the checkpoint does not open.
    """
    if sdedit is not None and not 0 < sdedit <= 1:
        raise InputError(f"--sdedit {sdedit}: give a share of the noise schedule above 0 and up to 1, or none")
    if name == "opencv" and sdedit is None:
        return OpenCVRemover()
    if name == "opencv" and weights is None:
        raise InputError(
            f"--sdedit {sdedit}: with --remover opencv it needs a diffusion checkpoint; "
            "give --remover-weights or --sdedit none"
        )
    from data_prep.diffusion_remover import DiffusionRemover, Inpainter, SDEditRemover

    inpainter = Inpainter(weights or DEFAULT_WEIGHTS, size=size, batch_size=batch_size, device=device, seed=seed)
    remover: HandRemover = OpenCVRemover() if name == "opencv" else DiffusionRemover(inpainter)
    return remover if sdedit is None else SDEditRemover(remover, inpainter, sdedit)


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
        return Removed(paste(request, hole, request.plate), hole, "opencv:plate")


def hole_around(hand: np.ndarray, crop_side: int) -> np.ndarray:
    """The hand mask with the margin that removal needs.

    Args:
        hand: bool (S, S).
        crop_side: side of the crop in source pixels.
    """
    return dilate(hand, hole_margin(hand.shape[0], crop_side))


def hole_margin(size: int, crop_side: int) -> int:
    """How far the hole reaches beyond the hand, in pixels of a crop of `size` that shows `crop_side` source pixels."""
    return max(1, round(max(HOLE_MARGIN, MIN_HOLE_MARGIN / crop_side) * size))


def shadow_hole(request: RemovalRequest) -> np.ndarray:
    """The request's hole with the hand's shadow, except on the objects: bool (S, S)."""
    margin = round(SHADOW_MARGIN * request.hole.shape[0])
    return request.hole | (dilate(request.hand, margin) & ~request.objects)


def seed_of(name: str) -> int:
    """A seed below 2^64 that belongs to a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def dilate(region: np.ndarray, radius: int) -> np.ndarray:
    """All pixels of a bool (H, W) within `radius` pixels of the region."""
    grown = np.zeros_like(region)
    box = bounding_box(region)
    if box is not None:
        around = window(box, radius, region.shape)
        grown[around] = _dilate(region[around], cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2))
    return grown


def paste(request: RemovalRequest, hole: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """Blend `painted` into the hole; the feather lies between the hole's edge and the hand.

    Args:
        request: whose `hoi` is kept, to the bit, outside the hole.
        hole: bool (S, S), contains the request's.
        painted: uint8 (S, S, 3).
    """
    depth = cv2.distanceTransform(hole.view(np.uint8), cv2.DIST_L2, 3)
    feather = max(1.0, float(depth[request.hand].min(initial=hole.shape[0])))
    weight = np.minimum(depth / feather, 1)
    blend = cv2.blendLinear(painted, request.hoi, weight, 1 - weight)
    return np.asarray(cv2.copyTo(blend, hole.view(np.uint8), request.hoi.copy()))


def _inpaint(request: RemovalRequest, working_size: int = 256) -> Removed:
    """Telea's fast marching at a small size, with the grain of the surroundings."""
    size = request.hole.shape[0]
    small = (min(size, working_size),) * 2
    wide = shadow_hole(request)
    hole = (cv2.resize(wide.astype(np.float32), small, interpolation=cv2.INTER_AREA) > 0).view(np.uint8)
    picture = cv2.resize(request.hoi, small, interpolation=cv2.INTER_AREA)
    painted = cv2.inpaint(picture, hole, 3, cv2.INPAINT_TELEA)
    painted = cv2.resize(painted, (size, size), interpolation=cv2.INTER_CUBIC)
    ring = dilate(wide, max(2, size // 24)) & ~wide
    if ring.any():
        grain = request.hoi[ring].astype(np.float32) - _blur(request.hoi, 1.0)[ring]
        # Median instead of mean: edges in the ring are not grain.
        sigma = 1.4826 * float(np.median(np.abs(grain)))
        noise = np.random.default_rng(seed_of(request.key)).standard_normal((size, size, 1), np.float32) * sigma
        painted = (painted + noise).round().clip(0, 255).astype(np.uint8)
    return Removed(paste(request, wide, painted), wide, "opencv:telea")


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
