"""From a HOI4D clip to HOI/object pairs: which frames, which hand, which crop, in two passes.

The first pass reads masks only and decides everything; the second decodes the video once, forward, and keeps nothing
but the crops in hand and at most two whole frames.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import cv2
import numpy as np

from data_prep.hoi4d import (
    HEIGHT,
    WIDTH,
    Box,
    Event,
    Fault,
    Sequence,
    Side,
    bounding_box,
    count_frames,
    decode_video,
    read_events,
    read_keypoints,
    read_labels,
)
from data_prep.layout_fit import fit_crop_layout, on_hand, whole_hand
from data_prep.remove_hand import HandRemover, RemovalRequest, hole_around
from hoi_lightning.data.sample import HOISample, SampleInfo

REACH = 4  # source pixels between a hand and what it touches
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


@dataclass(frozen=True)
class Drop:
    """A frame that gave no pair, or a whole clip (frame None), and why; the path is relative to the tree's root."""

    sequence: str
    frame: int | None
    reason: str
    path: str
    detail: str = ""

    @classmethod
    def of(cls, sequence: Sequence, frame: int | None, fault: Fault) -> "Drop":
        """Write a fault down."""
        return cls(sequence.name, frame, fault.reason, fault.path.relative_to(sequence.root).as_posix(), fault.detail)


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


def plan_clip(sequence: Sequence, settings: PairSettings) -> ClipPlan:
    """Decide from events and masks which frames become which pairs.

    Raises:
        Fault: the whole clip is of no use: no video, no events, no masks.
    """
    num_frames = count_frames(sequence.video)
    # Clocks run over the whole clip, even where its video has been cut short.
    num_frames = max([num_frames, *(int(path.stem) + 1 for path in sequence.mask_folder.glob("[0-9]*.png"))])
    events = read_events(sequence.actions, num_frames)
    seen = range(0, num_frames, settings.stride)
    clip = ClipPlan(len(seen))
    candidates: dict[int, Event] = {}
    for frame in seen:
        event = _event_at(events, frame)
        if event is not None and event.kind == "contact":
            candidates[frame] = event
        else:
            reason = "unknown-event" if event is not None and event.kind == "unknown" else "no-contact-event"
            fault = Fault(reason, sequence.actions, event.name if event is not None else "")
            clip.drops.append(Drop.of(sequence, frame, fault))
    references = _references(sequence, candidates, num_frames)
    for frame, event in candidates.items():
        try:
            clip.pairs.append(_plan_frame(sequence, frame, event, references, settings))
        except Fault as fault:
            clip.drops.append(Drop.of(sequence, frame, fault))
    return clip


def make_pairs(
    sequence: Sequence, plans: list[Plan], settings: PairSettings, remover: HandRemover
) -> Iterator[tuple[HOISample, KeypointState] | Drop]:
    """Decode the clip once and make its pairs; a plan the video does not reach becomes a drop."""
    if not plans:
        return
    waiting: dict[int, np.ndarray] = {}
    plates: dict[int, np.ndarray] = {}
    todo = {plan.frame: plan for plan in plans}
    plate_frames = {plan.plate for plan in plans if plan.plate is not None}
    last = max([*todo, *plate_frames])
    index, fault = -1, None

    @cache
    def plate_at(frame: int | None, crop: Box) -> np.ndarray | None:
        return resize_window(plates[frame], crop, settings.size) if frame in plates else None

    try:
        for index, frame in enumerate(decode_video(sequence.video)):
            if index in todo or index in plate_frames:
                rgb = frame.to_ndarray(format="rgb24")
                if index in plate_frames:
                    plates[index] = rgb
                if index in todo:
                    waiting[index] = resize_window(rgb, todo[index].crop, settings.size)
                ready = [i for i in waiting if todo[i].plate is None or todo[i].plate in plates]
                yield from _finish(sequence, {todo.pop(i): waiting.pop(i) for i in ready}, plate_at, settings, remover)
            if index == last:
                break
    except Fault as error:
        fault = error
    yield from _finish(sequence, {todo.pop(i): waiting.pop(i) for i in list(waiting)}, plate_at, settings, remover)
    fault = fault or Fault("short-video", sequence.video, f"ends after {index + 1} frames")
    yield from (Drop.of(sequence, frame, fault) for frame in sorted(todo))


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


def touched_object(labels: np.ndarray, sequence: Sequence) -> tuple[Side, tuple[int, ...]] | None:
    """Find the hand that touches an object and that object's labels; the right hand goes first.

    Args:
        labels: uint8 (1080, 1920).
        sequence: the clip, whose category says which labels are hands.
    """
    kernel = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
    for side, label in sequence.hand_labels.items():
        hand = (labels == label).view(np.uint8)
        box = bounding_box(hand)
        if box is None:
            continue
        window = _window(box, REACH)
        near = cv2.dilate(hand[window], kernel).view(bool)
        counts = np.bincount(labels[window][near], minlength=256)
        touched = max(sequence.objects, key=lambda group: counts[list(group)].sum())
        if counts[list(touched)].any():
            return side, touched
    return None


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


def _event_at(events: list[Event], frame: int) -> Event | None:
    order = {"contact": 0, "unknown": 1, "idle": 2}
    covering = [event for event in events if event.first <= frame < event.stop]
    return min(covering, key=lambda event: order[event.kind], default=None)


def _references(sequence: Sequence, candidates: dict[int, Event], num_frames: int) -> list[_Reference]:
    """The nearest frames without any hand before and after the contact, as far as there are some."""
    if not candidates:
        return []
    step = max(1, num_frames // 60)
    found = [
        _first_hand_free(sequence, range(min(candidates) - 1, -1, -step)),
        _first_hand_free(sequence, range(max(candidates) + 1, num_frames, step)),
    ]
    return [reference for reference in found if reference is not None]


def _first_hand_free(sequence: Sequence, frames: range) -> _Reference | None:
    for frame in frames:
        try:
            labels = read_labels(sequence.mask(frame), sequence.valid)
        except Fault:
            continue  # such a frame is in the ledger already, as outside any contact event
        if labels.any() and not _among(labels, tuple(sequence.hand_labels.values())).any():
            return _Reference(frame, labels)
    return None


def _plan_frame(
    sequence: Sequence, frame: int, event: Event, references: list[_Reference], settings: PairSettings
) -> Plan:
    path = sequence.mask(frame)
    labels = read_labels(path, sequence.valid)
    hands = tuple(sequence.hand_labels.values())
    found = touched_object(labels, sequence)
    if found is None:
        raise Fault("no-touch" if _among(labels, hands).any() else "no-hand", path)
    side, touched = found
    # The box of the whole object, not of what the hand leaves visible: else the crop would betray the hand.
    nearest = sorted(references, key=lambda reference: abs(reference.frame - frame))
    still = next((r for r in nearest if _stands_still(labels, r.labels, touched, hands)), None)
    box = bounding_box(_among(still.labels if still else labels, touched))
    assert box is not None  # the hand touches it
    crop = crop_around(box, sequence.valid)
    window = resize_window(labels, crop, settings.size)
    share = (window == sequence.hand_labels[side]).mean()
    if share < settings.min_hand_area:
        raise Fault("hand-too-small", path, f"covers {share:.4f} of the crop, below {settings.min_hand_area}")
    if hole_around(_among(window, hands), crop[2] - crop[0]).mean() > MAX_HOLE_AREA:
        raise Fault("hand-too-large", path, f"its hole covers over {MAX_HOLE_AREA} of the crop")
    hand = whole_hand(labels == sequence.hand_labels[side])
    return Plan(frame, event.name, side, touched, box, crop, window, hand, still.frame if still else None)


def _stands_still(labels: np.ndarray, reference: np.ndarray, touched: tuple[int, ...], hands: tuple[int, ...]) -> bool:
    """Whether the object, as far as no hand hides it, covers the same pixels in both frames."""
    now, then = _among(labels, touched), _among(reference, touched)
    boxes = [box for box in (bounding_box(now), bounding_box(then)) if box is not None]
    if len(boxes) < 2:
        return False
    low, high = np.min(boxes, 0), np.max(boxes, 0)
    window = _window((low[0], low[1], high[2], high[3]), 0)
    hidden = cv2.dilate(_among(labels[window], hands).view(np.uint8), np.ones((9, 9), np.uint8)).view(bool)
    now, then = now[window] & ~hidden, then[window]
    visible = then & ~hidden
    union = np.count_nonzero(now | visible)
    enough = union > 0.1 * np.count_nonzero(then)
    return bool(enough and np.count_nonzero(now & visible) >= STILL_IOU * union)


def _finish(
    sequence: Sequence,
    crops: dict[Plan, np.ndarray],
    plate_at: Callable[[int | None, Box], np.ndarray | None],
    settings: PairSettings,
    remover: HandRemover,
) -> Iterator[tuple[HOISample, KeypointState]]:
    requests = []
    for plan, hoi in crops.items():
        hand = _among(plan.labels, tuple(sequence.hand_labels.values()))
        requests.append(
            RemovalRequest(
                key=sequence.key(plan.frame),
                hoi=hoi,
                hand=hand,
                hole=hole_around(hand, plan.crop[2] - plan.crop[0]),
                objects=(plan.labels > 0) & ~hand,
                plate=plate_at(plan.plate, plan.crop),
            )
        )
    for plan, request, removed in zip(crops, requests, remover(requests), strict=True):
        keypoints, state = _keypoints(sequence, plan)
        one_hand = plan.labels == sequence.hand_labels[plan.side]
        layout, iou = fit_crop_layout(one_hand, plan.hand, keypoints, plan.crop)
        info = SampleInfo(
            key=request.key,
            sequence=sequence.name,
            frame=plan.frame,
            category=sequence.category,
            instance=sequence.instance,
            task=sequence.task,
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
            sdedit_level=None,
        )
        sample = HOISample(info, request.hoi, removed.obj, None, request.hand, _among(plan.labels, plan.touched))
        yield sample, state


def _keypoints(sequence: Sequence, plan: Plan) -> tuple[np.ndarray | None, KeypointState]:
    path = sequence.hand_pose(plan.frame, plan.side)
    if path is None:
        return None, "missing"
    try:
        keypoints = read_keypoints(path)
    except Fault:
        return None, "broken"
    return (keypoints, "valid") if on_hand(keypoints, plan.hand) else (None, "broken")


def _keypoints_in_crop(keypoints: np.ndarray, crop: Box, size: int) -> tuple[tuple[float, float], ...]:
    points = (keypoints + 0.5 - crop[:2]) * size / (crop[2] - crop[0])
    return tuple((round(x, 2), round(y, 2)) for x, y in points.tolist())


def _box_in_crop(box: Box, crop: Box, size: int) -> tuple[float, float, float, float]:
    """The box in crop pixels, cut off at the crop's border."""
    corners = np.array(box, float).reshape(2, 2) - crop[:2]
    x0, y0, x1, y1 = (corners * size / (crop[2] - crop[0])).clip(0, size).round(2).ravel().tolist()
    return x0, y0, x1, y1


def _among(labels: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """Bool mask of the pixels whose label is one of `chosen`."""
    table = np.zeros(256, np.uint8)
    table[list(chosen)] = 1
    return cv2.LUT(labels, table).view(bool)


def _window(box: Box, margin: int) -> tuple[slice, slice]:
    return (
        slice(max(box[1] - margin, 0), min(box[3] + margin, HEIGHT)),
        slice(max(box[0] - margin, 0), min(box[2] + margin, WIDTH)),
    )
