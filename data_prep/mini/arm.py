"""A whole arm: the limbs of a hand with its forearm and sleeve, painted into one layer."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from data_prep.mini import hand
from data_prep.mini.affordance import Grasp, mirrored
from data_prep.mini.limbs import RIM_MM, Box, HandPainter, Limb, Mark, Tube, facing_mark
from data_prep.mini.view import SIZE

SKIN_TONES = np.array(
    [[244, 208, 184], [231, 184, 150], [208, 156, 118], [176, 122, 84], [132, 86, 58], [92, 60, 44]], np.float32
)
# palm capsules: from, to (hand frame, millimetres) and radii; further ones run to the knuckles and the thumb
WRIST_MM = np.array([[-14.0, 6.0, -5.0], [-5.0, 3.0, -3.0], [6.0, 3.0, -3.0], [14.0, 6.0, -5.0]])
PALM_MM = np.array([[0.0, 22.0, -9.0], [4.0, 66.0, -5.0], [-20.0, 50.0, -6.0]])  # centre, front, web of the thumb
_INNER_MM = np.concatenate([WRIST_MM, PALM_MM])
PALM_RADII_MM = np.array(
    [[15, 12.5], [15, 13], [15, 12.5], [14, 11], [24, 26], [17, 12.5], [15, 11], [14, 10], [24, 24]]
)
# digits: joints from which their capsules run to the next joint (the thumb's first bone is the palm's), and the
# capsules of each within a body
BONES = np.array([2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19])
ROOTS, TIPS = np.array([2, 5, 9, 13, 17]), np.array([4, 8, 12, 16, 20])
PALM, DIGITS = slice(0, 9), (slice(9, 11), slice(11, 14), slice(14, 17), slice(17, 20), slice(20, 23))
_RADII = [hand.THUMB_RADII_MM[1:], *hand.FINGER_RADII_MM]
_RADII_MM = np.concatenate([PALM_RADII_MM, *(np.stack([r[:-1], r[1:]], axis=1) for r in _RADII)])
ROOT_RADII_MM, TIP_RADII_MM = np.array([[r[0], r[-1]] for r in _RADII]).T
FOREARM_MM = ((0.0, 230.0, 1100.0), (24.0, 40.0, 58.0))  # distances from the wrist, half widths
CREASE = 0.3  # darkness of the creases over a finger's joints
COARSE = 2  # the layer is painted at this fraction of the picture's size; even, as a video's colours are at half of it
LAYER = (SIZE[0] // COARSE, SIZE[1] // COARSE)
TILE = 80  # pixels of the layer


@dataclass(frozen=True)
class Skin:
    """What a person looks like in one clip.

    Attributes:
        tone: (3,) RGB.
        sleeve: (3,) RGB, or None for a bare arm.
        cuff_mm: where the sleeve begins, from the wrist.
        stripes: whether the sleeve is striped.
        girth: factor on every radius.
    """

    tone: np.ndarray
    sleeve: np.ndarray | None
    cuff_mm: float
    stripes: bool
    girth: float


@dataclass(frozen=True)
class Arm:
    """A painted arm over a window of the picture, COARSE of whose pixels are one of its own.

    Attributes:
        rgb: float32 (3, h, w), 0..255, premultiplied by alpha.
        alpha: float32 (h, w), 0..1.
        under: float32 (h, w), 0..1, the part of alpha that belongs to digits behind the object.
        window: x0, y0, x1, y1 in its own pixels.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    under: np.ndarray
    window: Box


@dataclass(frozen=True)
class Body:
    """The solids of an arm, pixels and height.

    Attributes:
        ends: (23, 2, 3) capsule axes: the palm's, then the digits', each from its root to its tip.
        radii: (23, 2) their radii at both ends.
        tubes: the forearm, and its sleeve if it has one.
    """

    ends: np.ndarray
    radii: np.ndarray
    tubes: list[Tube]


def draw_skin(rng: np.random.Generator, tint: np.ndarray) -> Skin:
    """Draw a person under a light of colour `tint` (3,): one of six skin tones, a sleeve in 60 % of the draws."""
    tone = SKIN_TONES[rng.integers(len(SKIN_TONES))] * tint
    hue = rng.uniform(0, 180)
    hsv = np.array([[[hue, rng.choice([30, 140, 190]), rng.choice([60, 130, 200])]]], np.uint8)
    sleeve = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * tint
    bare = rng.random() >= 0.6
    return Skin(
        tone, None if bare else sleeve, rng.uniform(45, 190), bool(rng.random() < 0.35), rng.uniform(0.94, 1.08)
    )


def paint_arm(grasp: Grasp, skin: Skin, light: np.ndarray, missing: frozenset[int] = frozenset()) -> Arm:
    """Paint a hand, its forearm and its sleeve.

    Args:
        grasp: the hand.
        skin: whose arm it is.
        light: (3,) unit vector towards the light.
        missing: digits that are left out; the palm stays whole.
    """
    if grasp.side == "left":
        arm = paint_arm(mirrored(grasp), skin, light * np.array([-1, 1, 1], np.float32), missing)
        x0, y0, x1, y1 = arm.window
        rgb, alpha, under = (np.ascontiguousarray(layer[..., ::-1]) for layer in (arm.rgb, arm.alpha, arm.under))
        return Arm(rgb, alpha, under, (LAYER[0] - x1, y0, LAYER[0] - x0, y1))
    body = build_body(grasp, skin, COARSE)
    grasp = replace(grasp, joints=grasp.joints / COARSE, scale=grasp.scale / COARSE)
    palm, digits = _palm(grasp, body, skin), _digits(grasp, body, skin, missing)
    tiles = _tiles(body.tubes)
    window = _window([limb.box() for limb in (palm, *digits)] + tiles)
    painter = HandPainter(window, light)
    limbs: list[Limb | Tube] = [body.tubes[0], palm, *digits, *body.tubes[1:]]
    for limb in limbs:
        for box in [limb.box()] if isinstance(limb, Limb) else filter(limb.touches, tiles):
            painter.paint(limb, box)
    return Arm(painter.rgb, 1 - painter.clear, painter.under, window)


def build_body(grasp: Grasp, skin: Skin, shrink: int) -> Body:
    """The solids of a right arm, in units of `shrink` pixels."""
    joints, scale = grasp.joints / shrink, grasp.scale / shrink
    girth = scale * skin.girth
    axis = np.array([math.cos(grasp.forearm), math.sin(grasp.forearm)])
    slim = 1 - 0.2 * math.sin(grasp.roll) ** 2  # a wrist is thinner than it is wide
    tubes = [_tube(joints[0], axis, 0.0, scale, slim, skin)]
    if skin.sleeve is not None:
        tubes.append(_tube(joints[0], axis, skin.cuff_mm, scale, slim, skin))

    inner = grasp.pose.place(_INNER_MM) / shrink
    ends, radii = np.empty((len(_RADII_MM), 2, 3)), _RADII_MM * girth
    ends[:5, 0], ends[5, 0], ends[6:8, 0] = inner[:5], joints[1], inner[6]
    ends[:4, 1], ends[4, 1], ends[5:8, 1] = joints[[5, 9, 13, 17]], inner[5], joints[[2, 5, 2]]
    # the palm runs on into the forearm and sinks below its surface there
    ends[8] = joints[0] - np.array([0, 0, 12 * girth])
    ends[8, 1] += 60 * scale * np.array([axis[0], axis[1], -0.1])
    radii[8] *= slim

    chain = joints.copy()
    last = joints[TIPS] - joints[TIPS - 1]
    # a tip joint lies near the surface, and a first bone comes out of the palm
    chain[TIPS] -= last * (hand.TIP_PAD * girth * TIP_RADII_MM / np.sqrt(np.square(last).sum(axis=1)))[:, None]
    chain[ROOTS, 2] -= 0.4 * girth * ROOT_RADII_MM
    ends[9:, 0], ends[9:, 1] = chain[BONES], chain[BONES + 1]
    return Body(ends, radii, tubes)


def _tube(wrist: np.ndarray, axis: np.ndarray, start_mm: float, scale: float, slim: float, skin: Skin) -> Tube:
    cloth = start_mm > 0
    (_, near, far), (narrow, wide, widest) = FOREARM_MM
    girth = scale * skin.girth
    first = narrow * slim + (wide - narrow * slim) * start_mm / near
    room = 5.0 if cloth else 0.0
    return Tube(
        start=wrist + scale * np.array([start_mm * axis[0], start_mm * axis[1], room]),
        axis=axis,
        radii=((first + room) * girth, (wide + room) * girth, (widest - wide) / (far - near) * skin.girth),
        elbow=(near - start_mm) * scale,
        colour=skin.sleeve if cloth and skin.sleeve is not None else skin.tone,
        unit=scale,
        length=1e4 if cloth or skin.sleeve is None else (skin.cuff_mm + 12) * scale,
        cloth=cloth,
        stripes=skin.stripes,
    )


def _palm(grasp: Grasp, body: Body, skin: Skin) -> Limb:
    girth = grasp.scale * skin.girth
    melts = np.append(grasp.joints[[0, 5, 9, 13, 17, 2], :2], girth * np.array([[30, 14, 14, 14, 12, 13]]).T, axis=1)
    turn = grasp.pose.turn
    creases: list[Mark] = []
    for knuckle in grasp.joints[[5, 9, 13, 17]]:
        centre = (knuckle + 9 * girth * turn[2]).tolist()
        across, along, facing = 6 * girth * turn[0], 6 * girth * turn[1], 0.16 * max(float(turn[2, 2]), 0)
        creases += facing_mark(centre, along.tolist(), across.tolist(), facing)
    return Limb(
        ends=body.ends[PALM],
        radii=body.radii[PALM],
        melts=melts,
        colour=skin.tone,
        creases=creases,
        nails=[],
        unit=grasp.scale,
    )


def _digits(grasp: Grasp, body: Body, skin: Skin, missing: frozenset[int]) -> list[Limb]:
    """The digits that are drawn, lowest first."""
    along, back = (vectors @ grasp.pose.turn for vectors in hand.bones(grasp.grip))
    # over a joint the skin faces halfway between its bones
    ways, faces = (np.concatenate([v[:, :2] + v[:, 1:], v[:, 2:]], axis=1) for v in (along, back))
    ways, faces = (v / np.sqrt(np.square(v).sum(axis=2, keepdims=True)) for v in (ways, faces))
    sides = np.roll(ways, -1, 2) * np.roll(faces, -2, 2) - np.roll(ways, -2, 2) * np.roll(faces, -1, 2)
    limbs = []
    for digit in sorted(set(range(5)) - missing, key=lambda d: float(body.ends[DIGITS[d], :, 2].mean())):
        ends, radii = body.ends[DIGITS[digit]], body.radii[DIGITS[digit]]
        creases: list[Mark] = []
        for joint in range(3 - len(ends), 2):  # the thumb's first bone is the palm's
            way, face, side = ways[digit, joint], faces[digit, joint], sides[digit, joint]
            centre, r = ends[joint + len(ends) - 2, 0], float(radii[joint + len(ends) - 2, 0])
            facing = CREASE * min(max(1.5 * float(face[2]), 0), 1)
            at = (centre + 0.9 * r * face).tolist()
            creases += facing_mark(at, (0.3 * r * way).tolist(), (0.8 * r * side).tolist(), facing)
        way, face, side, r = ways[digit, 2], faces[digit, 2], sides[digit, 2], float(radii[-1, 1])
        nail = (ends[-1, 1] + r * (0.75 * face + 0.15 * way)).tolist()
        facing = min(max(2.2 * float(face[2]) - 0.3, 0), 1)
        limbs.append(
            Limb(
                ends=ends,
                radii=radii,
                melts=np.append(ends[0, 0, :2], 1.05 * radii[0, 0])[None],
                colour=skin.tone,
                creases=creases,
                nails=facing_mark(nail, (0.85 * r * way).tolist(), (0.62 * r * side).tolist(), facing),
                unit=grasp.scale,
                under=digit in grasp.under,
            )
        )
    return limbs


def _tiles(tubes: list[Tube]) -> list[Box]:
    """Boxes along the forearm, so that a slanted arm costs its own area and not its bounding box's.

    They do not overlap: each takes over where the one before ends, on the axis along which the arm runs more.
    """
    wrist, axis, room = tubes[0].start, tubes[0].axis, tubes[-1].radii[1] - tubes[0].radii[1]
    major = int(abs(axis[1]) > abs(axis[0]))
    sign = int(np.sign(axis[major]))
    begin = int(wrist[major] - sign * tubes[0].radii[1] * abs(axis[1 - major]))
    tiles: list[Box] = []
    while begin < LAYER[major] if sign > 0 else begin > 0:
        end = begin + sign * TILE
        far = (np.array([begin, end]) - wrist[major]) / axis[major]
        middle = wrist[1 - major] + axis[1 - major] * far
        radius = float(tubes[0].radius(far[1] + tubes[0].radii[1])) + room + RIM_MM * tubes[0].unit
        spread = radius / abs(axis[major])
        low, high = int(middle.min() - spread), int(middle.max() + spread)
        first, last = min(begin, end), max(begin, end)
        tiles.append((low, first, high, last) if major else (first, low, last, high))
        begin = end
    return tiles


def _window(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return (
        min(max(min(lefts), 0), LAYER[0] - 4),
        min(max(min(tops), 0), LAYER[1] - 4),
        max(min(max(rights), LAYER[0]), 4),
        max(min(max(bottoms), LAYER[1]), 4),
    )
