"""A whole arm: the limbs of a hand with its forearm and sleeve, painted into one layer."""

from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.mini import hand
from data_prep.mini.limbs import Box, HandPainter, Limb, Tube

SKIN_TONES = np.array(
    [[244, 208, 184], [231, 184, 150], [208, 156, 118], [176, 122, 84], [132, 86, 58], [92, 60, 44]], np.float32
)
WRIST_MM = np.array([[-15.0, 6.0, -8.0], [-5.0, 3.0, -7.0], [6.0, 3.0, -7.0], [15.0, 6.0, -8.0]])
FOREARM_MM = ((0.0, 230.0, 1100.0), (24.0, 40.0, 54.0))  # distances from the wrist, half widths
TILE_PX = 128


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


def paint_arm(
    grip: hand.Grip,
    joints: np.ndarray,
    forearm: float,
    scale: float,
    skin: Skin,
    light: np.ndarray,
    size: tuple[int, int],
) -> HandPainter:
    """Paint a hand, its forearm and its sleeve.

    Args:
        grip: the hand's angles.
        joints: (21, 3) joints in the picture, pixels and height, as `hand.to_picture` gives them.
        forearm: direction from the wrist to the elbow in the picture, radians, +y down.
        scale: pixels per millimetre.
        skin: whose arm it is.
        light: (3,) unit vector towards the light.
        size: width and height of the picture.

    Returns:
        The layer, over a window inside the picture.
    """
    girth = scale * skin.girth
    axis = np.array([np.cos(forearm), np.sin(forearm)])
    tubes = [_tube(joints[0], axis, 0.0, scale, girth, skin)]
    if skin.sleeve is not None:
        tubes.append(_tube(joints[0], axis, skin.cuff_mm, scale, girth, skin))
    palm = _palm(grip, joints, forearm, scale, girth, skin)
    digits = [_digit(joints[5 + 4 * i : 9 + 4 * i], hand.FINGER_RADII_MM[i] * girth, skin) for i in (3, 2, 1, 0)]
    digits.append(_digit(joints[2:5], hand.THUMB_RADII_MM[1:] * girth, skin))

    tiles = _tiles(joints[0, :2], axis, 62 * girth, size)
    painter = HandPainter(_window([_box(limb) for limb in (palm, *digits)] + tiles, size), light)
    limbs: list[Limb | Tube] = [tubes[0], palm, *digits, *tubes[1:]]
    for limb in limbs:
        for box in tiles if isinstance(limb, Tube) else [_box(limb)]:
            painter.paint(limb, box)
    return painter


def _tube(wrist: np.ndarray, axis: np.ndarray, start_mm: float, scale: float, girth: float, skin: Skin) -> Tube:
    cloth = start_mm > 0
    far, half_width = FOREARM_MM
    first, elbow = (float(np.interp(mm, far, half_width)) for mm in (start_mm, far[1]))
    growth = (half_width[2] - half_width[1]) / (far[2] - far[1])
    room = 5.0 if cloth else 0.0
    start = np.append(wrist[:2] + start_mm * scale * axis, wrist[2] + room * scale)
    return Tube(
        start=start,
        axis=axis,
        radii=((first + room) * girth, (elbow + room) * girth, growth * skin.girth),
        elbow=(far[1] - start_mm) * scale,
        colour=skin.sleeve if cloth and skin.sleeve is not None else skin.tone,
        length=1e4 if cloth or skin.sleeve is None else (skin.cuff_mm + 12) * scale,
        cloth=cloth,
        stripes=skin.stripes,
    )


def _palm(grip: hand.Grip, joints: np.ndarray, forearm: float, scale: float, girth: float, skin: Skin) -> Limb:
    forward = forearm + np.pi + grip.bend
    inner = hand.to_picture(
        np.concatenate([WRIST_MM, [[0.0, 22.0, -9.0], [4.0, 66.0, -5.0], [-20.0, 50.0, -6.0]]]),
        forward,
        joints[0],
        scale,
    )
    wrists, (centre, front, web) = inner[:4], inner[4:]
    knuckles = joints[[5, 9, 13, 17]]
    ends = [np.stack(pair) for pair in zip(wrists, knuckles, strict=True)]
    radii = [(15.0, 12.5), (15.0, 13.0), (15.0, 12.5), (14.0, 11.0)]
    ends += [np.stack(pair) for pair in ((centre, front), (joints[1], joints[2]), (web, joints[5]), (web, joints[2]))]
    radii += [(24.0, 26.0), (17.0, 12.5), (15.0, 11.0), (14.0, 10.0)]
    # the palm runs on into the forearm and sinks below its surface there
    sunk = np.array([0.0, 0.0, 0.5 * 24 * girth])
    along = np.array([np.cos(forearm), np.sin(forearm), -0.1])
    ends.append(np.stack([joints[0] - sunk, joints[0] - sunk + 60 * scale * along]))
    radii.append((24.0, 24.0))
    return Limb(
        ends=np.stack(ends),
        radii=np.array(radii) * girth,
        melts=np.concatenate(
            [np.append(joints[[0, 5, 9, 13, 17, 2], :2], girth * np.array([[30, 14, 14, 14, 12, 13]]).T, axis=1)]
        ),
        colour=skin.tone,
        dimples=np.concatenate([knuckles[:, :2], np.full((4, 1), 9 * girth)], axis=1),
    )


def _digit(chain: np.ndarray, radii: np.ndarray, skin: Skin) -> Limb:
    last = chain[-1] - chain[-2]
    chain = chain.copy()
    chain[-1] -= last / np.linalg.norm(last) * hand.TIP_PAD * radii[-1]  # the joint lies near the surface
    chain[0, 2] -= 0.4 * radii[0]  # the first bone comes out of the palm
    bone = chain[-1, :2] - chain[-2, :2]
    axis = bone / max(float(np.linalg.norm(bone)), 1e-6)
    x, y = chain[-1, :2] + axis * 0.1 * radii[-1]
    return Limb(
        ends=np.stack([chain[:-1], chain[1:]], axis=1),
        radii=np.stack([radii[:-1], radii[1:]], axis=1),
        melts=np.append(chain[0, :2], 1.05 * radii[0])[None],
        colour=skin.tone,
        dimples=np.concatenate([chain[1:-1, :2], radii[1:-1, None]], axis=1),
        nail=(float(x), float(y), float(radii[-1]), float(axis[0]), float(axis[1])),
    )


def _box(limb: Limb) -> Box:
    grow = limb.radii.max() + 14
    low, high = limb.ends[..., :2].min(axis=(0, 1)) - grow, limb.ends[..., :2].max(axis=(0, 1)) + grow
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _tiles(wrist: np.ndarray, axis: np.ndarray, radius: float, size: tuple[int, int]) -> list[Box]:
    """Boxes along the forearm, so that a slanted arm costs its own area and not its bounding box's.

    They do not overlap: each takes over where the one before ends, on the axis along which the arm runs more.
    """
    major = int(abs(axis[1]) > abs(axis[0]))
    sign = int(np.sign(axis[major]))
    begin = int(wrist[major] - sign * radius * abs(axis[1 - major]))
    tiles: list[Box] = []
    while 0 <= begin <= size[major]:
        end = begin + sign * TILE_PX
        minor = [wrist[1 - major] + axis[1 - major] / axis[major] * (p - wrist[major]) for p in (begin, end)]
        spread = radius / abs(axis[major])
        low, high = int(min(minor) - spread), int(max(minor) + spread)
        first, last = min(begin, end), max(begin, end)
        tiles.append((low, first, high, last) if major else (first, low, last, high))
        begin = end
    return tiles


def _window(boxes: list[Box], size: tuple[int, int]) -> Box:
    low, high = np.min(boxes, axis=0)[:2], np.max(boxes, axis=0)[2:]
    return (
        int(np.clip(low[0], 0, size[0] - 4)),
        int(np.clip(low[1], 0, size[1] - 4)),
        int(np.clip(high[0] + 1, 4, size[0])),
        int(np.clip(high[1] + 1, 4, size[1])),
    )
