"""From a clip to HOI/object pairs: which frames, which hand, which crop, in two passes.

The first pass reads label maps only and decides everything; the second reads the pictures once, forward, and keeps
nothing but the crops in hand and at most two whole frames.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np

from data_prep.labels import among, bounding_box, share, window
from data_prep.layout_fit import fit_crop_layout, on_hand, whole_hand
from data_prep.references import Reference, find_references
from data_prep.remove_hand import HandRemover, RemovalRequest, Removed, hole_around, hole_margin
from data_prep.resize import resize, sharpness
from data_prep.sources import Box, Clip, Drop, Fault, Moment, Picture, Side
from hoi_lightning.data.sample import HOISample, SampleInfo

CROP_FACTOR = 2.6  # side of the crop over the longer side of the object's box (Affordance Diffusion's 0.8 padding)
MAX_HOLE_AREA = 0.75  # of the crop; beyond it nothing is left to tell what the hand hides

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
    references = find_references(clip, candidates, [moment.frame for moment in moments])
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


def _plan_frame(clip: Clip, moment: Moment, references: list[Reference], settings: PairSettings) -> Plan:
    frame = moment.frame
    labels = clip.labels(frame)
    hands = tuple(clip.hand_labels.values())
    found = clip.touched(labels.values)
    if found is None:
        raise Fault("no-touch" if labels.box(hands) else "no-hand", clip.mask(frame))
    side, touched = found
    # The box of the whole object, not of what the hand leaves visible: else the crop would betray the hand.
    box, plate = labels.box(touched), None
    for reference in sorted(references, key=lambda reference: abs(reference.frame - frame)):
        still = reference.shows_still(labels, touched, hands)
        if still is not None:
            box, plate = still, reference.frame
            break
    assert box is not None  # the hand touches it
    crop = crop_around(box, clip.valid)
    shown = resize(labels.at(crop), settings.size)
    covered = share(shown == clip.hand_labels[side])
    if covered == 0 or covered < settings.min_hand_area:
        detail = (
            f"covers {covered:.4f} of the crop, below {settings.min_hand_area}" if covered else "lies outside the crop"
        )
        raise Fault("hand-too-small", clip.mask(frame), detail)
    if _hides_too_much(among(shown, hands), crop[2] - crop[0]):
        raise Fault("hand-too-large", clip.mask(frame), f"its hole covers over {MAX_HOLE_AREA} of the crop")
    hand = whole_hand(labels, clip.hand_labels[side])
    return Plan(frame, moment.event, side, touched, box, crop, shown, hand, plate)


def _hides_too_much(hand: np.ndarray, crop_side: int) -> bool:
    """Whether the hole about a hand, bool (S, S), covers over `MAX_HOLE_AREA` of the crop."""
    box = bounding_box(hand)
    assert box is not None
    around = window(box, hole_margin(hand.shape[0], crop_side), hand.shape)
    # The hole is no larger than its box, which is found sooner.
    return hand[around].size > MAX_HOLE_AREA * hand.size and share(hole_around(hand, crop_side)) > MAX_HOLE_AREA


def _requests(
    clip: Clip, plans: list[Plan], settings: PairSettings, drops: list[Drop]
) -> Iterator[tuple[Plan, RemovalRequest]]:
    """What the remover is asked for, as soon as a plan's picture and plate have been read; `drops` grows."""
    waiting: dict[int, np.ndarray] = {}
    plates: dict[int, Picture] = {}
    todo = {plan.frame: plan for plan in plans}
    plate_frames = {plan.plate for plan in plans if plan.plate is not None}

    @cache
    def plate_at(frame: int | None, crop: Box) -> np.ndarray | None:
        return plates[frame](crop, settings.size) if frame in plates else None

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
        for number, picture in clip.pictures({*todo, *plate_frames}):
            if isinstance(picture, Fault):
                if number in todo:
                    drops.append(Drop.of(clip, todo.pop(number).frame, picture))
                continue
            if number in plate_frames:
                plates[number] = picture
            if number in todo:
                waiting[number] = picture(todo[number].crop, settings.size)
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
