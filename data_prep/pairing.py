"""From a clip to HOI/object pairs: which frames, which hand, which crop, in two passes.

The first pass reads label maps only and decides everything; the second reads the pictures once, forward, and keeps
nothing but the crops in hand and at most two whole frames.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import cv2
import numpy as np

from data_prep.labels import among, bounding_box, window
from data_prep.layout_fit import fit_crop_layout, on_hand, whole_hand
from data_prep.remove_hand import HandRemover, RemovalRequest, Removed, hole_around
from data_prep.sources import Box, Clip, Drop, Fault, Moment, Side
from hoi_lightning.data.sample import HOISample, SampleInfo

CROP_FACTOR = 2.6  # side of the crop over the longer side of the object's box (Affordance Diffusion's 0.8 padding)
MAX_HOLE_AREA = 0.75  # of the crop; beyond it nothing is left to tell what the hand hides
STILL_IOU = 0.8  # of the object's visible pixels in two frames between which it has not moved

KeypointState = Literal["valid", "missing", "broken"]


@dataclass(frozen=True)
class PairSettings:
    """What decides the pairs of a clip.

    Attributes:
        size: side of the crops in pixels.
        stride: every n-th frame is looked at.
        min_hand_area: least share of the crop that the hand covers, in [0, 1].
    """

    size: int = 512
    stride: int = 1
    min_hand_area: float = 0.005


@dataclass(frozen=True, eq=False)
class Plan:
    """A pair decided on by the first pass.

    Attributes:
        frame: its frame.
        event: action event covering it, as stored.
        side: the hand that the layout describes.
        touched: labels of the object it touches.
        object_box: that object's box in source pixels.
        crop: square window in source pixels.
        labels: uint8 (size, size), the mask in that window.
        hand: bool (S, S), that hand in the whole frame, as `whole_hand` makes it.
        plate: a hand-free frame in which the object stands where it does in this one, or None.
    """

    frame: int
    event: str
    side: Side
    touched: tuple[int, ...]
    object_box: Box
    crop: Box
    labels: np.ndarray
    hand: np.ndarray
    plate: int | None


@dataclass
class ClipPlan:
    """All that the first pass found in a clip.

    Attributes:
        num_seen: frames looked at; each of them is in `pairs` or in `drops`.
        pairs: the pairs to make, by frame.
        drops: the frames given up.
    """

    num_seen: int
    pairs: list[Plan] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Reference:
    frame: int
    labels: np.ndarray


def plan_clip(clip: Clip, settings: PairSettings) -> ClipPlan:
    """Decide from events and label maps which frames become which pairs.

    Raises:
        Fault: the whole clip is of no use: no pictures, no events, no masks.
    """
    moments = clip.moments()
    seen = moments[:: settings.stride]
    plan = ClipPlan(len(seen))
    candidates: list[Moment] = []
    for moment in seen:
        if moment.fault is None:
            candidates.append(moment)
        else:
            plan.drops.append(Drop.of(clip, moment.frame, moment.fault))
    references = _references(clip, candidates, [moment.frame for moment in moments])
    for moment in candidates:
        try:
            plan.pairs.append(_plan_frame(clip, moment, references, settings))
        except Fault as fault:
            plan.drops.append(Drop.of(clip, moment.frame, fault))
    return plan


def make_pairs(
    clip: Clip, plans: list[Plan], settings: PairSettings, remover: HandRemover
) -> Iterator[tuple[HOISample, KeypointState] | Drop]:
    """Read the clip's pictures once and make its pairs; a plan they do not reach becomes a drop.

    The remover sees the whole clip as one stream, so that it can fill its batches.
    """
    if not plans:
        return
    asked: deque[tuple[Plan, RemovalRequest]] = deque()
    drops: list[Drop] = []

    def requests() -> Iterator[RemovalRequest]:
        for plan, request in _requests(clip, plans, settings, drops):
            asked.append((plan, request))
            yield request

    for removed in remover(requests()):
        yield _pair(clip, *asked.popleft(), removed, settings)
    yield from drops


def crop_around(box: Box, valid: Box, factor: float = CROP_FACTOR) -> Box:
    """Square window about a box, moved inside `valid`, smaller only where it would not fit.

    Args:
        box: the object's box in pixels.
        valid: rectangle that holds picture.
        factor: side of the window over the longer side of the box.
    """
    width, height = valid[2] - valid[0], valid[3] - valid[1]
    side = min(round(factor * max(box[2] - box[0], box[3] - box[1])), width, height)
    x0 = min(max(round((box[0] + box[2] - side) / 2), valid[0]), valid[2] - side)
    y0 = min(max(round((box[1] + box[3] - side) / 2), valid[1]), valid[3] - side)
    return x0, y0, x0 + side, y0 + side


def resize_window(picture: np.ndarray, crop: Box, size: int) -> np.ndarray:
    """Cut a window out and bring it to size x size; labels, having no channels, keep their values."""
    window = picture[crop[1] : crop[3], crop[0] : crop[2]]
    if picture.ndim == 2:
        return cv2.resize(window, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    shrinks = crop[2] - crop[0] > size
    return cv2.resize(window, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def sharpness(picture: np.ndarray) -> float:
    """Variance of the Laplacian of the grey values of a uint8 (S, S, 3) at 256 px; small = blurred."""
    grey = cv2.cvtColor(cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def _references(clip: Clip, candidates: list[Moment], frames: list[int]) -> list[_Reference]:
    """The nearest frames without any hand before and after the contact, as far as there are some."""
    if not candidates or not clip.is_video:
        return []
    step = max(1, len(frames) // 60)
    first, last = frames.index(candidates[0].frame), frames.index(candidates[-1].frame)
    found = [
        _first_hand_free(clip, frames[:first][::-step]),
        _first_hand_free(clip, frames[last + 1 :: step]),
    ]
    return [reference for reference in found if reference is not None]


def _first_hand_free(clip: Clip, frames: list[int]) -> _Reference | None:
    for frame in frames:
        try:
            labels = clip.labels(frame)
        except Fault:
            continue  # such a frame is in the ledger already, as outside any contact event
        if labels.any() and not among(labels, clip.hand_labels.values()).any():
            return _Reference(frame, labels)
    return None


def _plan_frame(clip: Clip, moment: Moment, references: list[_Reference], settings: PairSettings) -> Plan:
    frame, path = moment.frame, clip.mask(moment.frame)
    labels = clip.labels(frame)
    hands = tuple(clip.hand_labels.values())
    found = clip.touched(labels)
    if found is None:
        raise Fault("no-touch" if among(labels, hands).any() else "no-hand", path)
    side, touched = found
    # The box of the whole object, not of what the hand leaves visible: else the crop would betray the hand.
    nearest = sorted(references, key=lambda reference: abs(reference.frame - frame))
    still = next((r for r in nearest if _stands_still(labels, r.labels, touched, hands)), None)
    box = bounding_box(among(still.labels if still else labels, touched))
    assert box is not None  # the hand touches it
    crop = crop_around(box, clip.valid)
    shown = resize_window(labels, crop, settings.size)
    share = (shown == clip.hand_labels[side]).mean()
    if share < settings.min_hand_area:
        raise Fault("hand-too-small", path, f"covers {share:.4f} of the crop, below {settings.min_hand_area}")
    if hole_around(among(shown, hands), crop[2] - crop[0]).mean() > MAX_HOLE_AREA:
        raise Fault("hand-too-large", path, f"its hole covers over {MAX_HOLE_AREA} of the crop")
    hand = whole_hand(labels == clip.hand_labels[side])
    return Plan(frame, moment.event, side, touched, box, crop, shown, hand, still.frame if still else None)


def _stands_still(labels: np.ndarray, reference: np.ndarray, touched: tuple[int, ...], hands: tuple[int, ...]) -> bool:
    """Whether the object, as far as no hand hides it, covers the same pixels in both frames."""
    now, then = among(labels, touched), among(reference, touched)
    boxes = [box for box in (bounding_box(now), bounding_box(then)) if box is not None]
    if len(boxes) < 2:
        return False
    low, high = np.min(boxes, 0), np.max(boxes, 0)
    around = window((low[0], low[1], high[2], high[3]), 0, labels.shape)
    hidden = cv2.dilate(among(labels[around], hands).view(np.uint8), np.ones((9, 9), np.uint8)).view(bool)
    now, then = now[around] & ~hidden, then[around]
    visible = then & ~hidden
    union = np.count_nonzero(now | visible)
    enough = union > 0.1 * np.count_nonzero(then)
    return bool(enough and np.count_nonzero(now & visible) >= STILL_IOU * union)


def _requests(
    clip: Clip, plans: list[Plan], settings: PairSettings, drops: list[Drop]
) -> Iterator[tuple[Plan, RemovalRequest]]:
    """What the remover is asked for, as soon as a plan's picture and plate have been read; `drops` grows."""
    waiting: dict[int, np.ndarray] = {}
    plates: dict[int, np.ndarray] = {}
    todo = {plan.frame: plan for plan in plans}
    plate_frames = {plan.plate for plan in plans if plan.plate is not None}

    @cache
    def plate_at(frame: int | None, crop: Box) -> np.ndarray | None:
        return resize_window(plates[frame], crop, settings.size) if frame in plates else None

    def request(frame: int) -> tuple[Plan, RemovalRequest]:
        plan = todo.pop(frame)
        hand = among(plan.labels, tuple(clip.hand_labels.values()))
        return plan, RemovalRequest(
            key=clip.key(plan.frame),
            hoi=waiting.pop(frame),
            hand=hand,
            hole=hole_around(hand, plan.crop[2] - plan.crop[0]),
            objects=(plan.labels > 0) & ~hand,
            plate=plate_at(plan.plate, plan.crop),
            category=clip.category,
        )

    fault: Fault | None = None
    try:
        for number, rgb in clip.pictures({*todo, *plate_frames}):
            if isinstance(rgb, Fault):
                if number in todo:
                    drops.append(Drop.of(clip, todo.pop(number).frame, rgb))
                continue
            if number in plate_frames:
                plates[number] = rgb
            if number in todo:
                waiting[number] = resize_window(rgb, todo[number].crop, settings.size)
            for ready in [i for i in waiting if todo[i].plate is None or todo[i].plate in plates]:
                yield request(ready)
    except Fault as error:
        fault = error
    for left in list(waiting):
        yield request(left)
    if fault is not None:
        drops += [Drop.of(clip, frame, fault) for frame in sorted(todo)]


def _pair(
    clip: Clip, plan: Plan, request: RemovalRequest, removed: Removed, settings: PairSettings
) -> tuple[HOISample, KeypointState]:
    keypoints, state = _keypoints(clip, plan)
    one_hand = plan.labels == clip.hand_labels[plan.side]
    layout, iou = fit_crop_layout(one_hand, plan.hand, keypoints, plan.crop)
    info = SampleInfo(
        key=request.key,
        sequence=clip.name,
        frame=plan.frame,
        category=clip.category,
        instance=clip.instance,
        task=clip.task,
        event=plan.event,
        contact=True,
        layout=layout,
        layout_iou=iou,
        hand_side=plan.side,
        object_box=_box_in_crop(plan.object_box, plan.crop, settings.size),
        crop=plan.crop,
        keypoints=None if keypoints is None else _keypoints_in_crop(keypoints, plan.crop, settings.size),
        blur=sharpness(request.hoi),
        remover=removed.name,
        sdedit_level=removed.sdedit_level,
    )
    sample = HOISample(info, request.hoi, removed.obj, removed.sdedit, request.hand, among(plan.labels, plan.touched))
    return sample, state


def _keypoints(clip: Clip, plan: Plan) -> tuple[np.ndarray | None, KeypointState]:
    try:
        keypoints = clip.keypoints(plan.frame, plan.side)
    except Fault:
        return None, "broken"
    if keypoints is None:
        return None, "missing"
    return (keypoints, "valid") if on_hand(keypoints, plan.hand) else (None, "broken")


def _keypoints_in_crop(keypoints: np.ndarray, crop: Box, size: int) -> tuple[tuple[float, float], ...]:
    points = (keypoints + 0.5 - crop[:2]) * size / (crop[2] - crop[0])
    return tuple((round(x, 2), round(y, 2)) for x, y in points.tolist())


def _box_in_crop(box: Box, crop: Box, size: int) -> tuple[float, float, float, float]:
    """The box in crop pixels, cut off at the crop's border."""
    corners = np.array(box, float).reshape(2, 2) - crop[:2]
    x0, y0, x1, y1 = (corners * size / (crop[2] - crop[0])).clip(0, size).round(2).ravel().tolist()
    return x0, y0, x1, y1
