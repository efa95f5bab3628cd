"""The skeleton of a drawn right hand: 21 joints from a grip, in millimetres and then in picture pixels.

Hand frame: x to the little finger's side, y from the wrist towards the fingers, z towards the camera (the back of the
hand is seen), origin at the wrist. Joint order is manopth's: wrist, thumb 1-4, index 5-8, middle, ring, little.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

GripKind = Literal["power", "pinch", "flat"]

KNUCKLES_MM = np.array([[-25.0, 88.0, 4.0], [-4.0, 93.0, 7.0], [17.0, 88.0, 5.0], [36.0, 77.0, 0.0]])
BONES_MM = np.array([[43.0, 27.0, 21.0], [48.0, 31.0, 22.0], [44.0, 29.0, 22.0], [35.0, 22.0, 19.0]])
FINGER_RADII_MM = np.array(
    [[11.0, 10.2, 9.4, 7.8], [11.4, 10.6, 9.6, 8.0], [10.8, 10.0, 9.2, 7.6], [9.6, 8.8, 8.0, 6.8]]
)
FAN_DEGREES = np.array([-9.0, -1.5, 6.0, 14.0])
THUMB_BASE_MM = np.array([-22.0, 22.0, -6.0])
THUMB_BONES_MM = np.array([43.0, 36.0, 26.0])
THUMB_RADII_MM = np.array([15.0, 12.6, 11.2, 9.2])
TIP_PAD = 0.6  # a tip joint lies this share of the tip's radius beyond the last bone


@dataclass(frozen=True)
class Grip:
    """Angles of a hand.

    Attributes:
        kind: power, pinch or flat.
        flexion: (4, 3) cumulated downward angles of index to little finger's bones, radians.
        fan: (4,) sideways angles of the four fingers, radians, positive towards the little finger.
        thumb: (3, 2) sideways and downward angles of the thumb's bones, radians.
        bend: angle between the forearm and the hand, radians.
    """

    kind: GripKind
    flexion: np.ndarray
    fan: np.ndarray
    thumb: np.ndarray
    bend: float


# kind: MCP, PIP, DIP flexion; thumb sideways (three bones); thumb downwards (three bones); fan factor; all in degrees
_GRIPS: dict[GripKind, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], float]] = {
    "power": ((14, 28, 18), (-54, -32, -14), (10, 20, 26), 1.35),
    "pinch": ((22, 34, 16), (-44, -18, 2), (14, 24, 28), 1.0),
    "flat": ((6, 12, 8), (-56, -44, -32), (4, 8, 10), 1.5),
}


def draw_grip(kind: GripKind, rng: np.random.Generator) -> Grip:
    """Draw a grip of a kind: its typical angles plus a person's and a finger's own spread."""
    flexion, sideways, down, fan = _GRIPS[kind]
    bones = np.cumsum(np.tile(flexion, (4, 1)) * rng.uniform(0.65, 1.3) + rng.normal(0, 4, (4, 3)), axis=1)
    if kind == "pinch":  # ring and little finger are curled away from the pinch
        bones[2:] += np.array([6.0, 12.0, 14.0])
    return Grip(
        kind=kind,
        flexion=np.radians(np.clip(bones, 0, 115)),
        fan=np.radians(FAN_DEGREES * fan * rng.uniform(0.7, 1.3) + rng.normal(0, 1.5, 4)),
        thumb=np.radians(np.stack([np.add(sideways, rng.normal(0, 5)), np.add(down, rng.normal(0, 4))], axis=1)),
        bend=np.radians(rng.normal(0, 7)),
    )


def joints_mm(grip: Grip) -> np.ndarray:
    """Forward kinematics: (21, 3) joints in the hand frame, millimetres."""
    joints = np.zeros((21, 3))
    joints[1] = THUMB_BASE_MM
    for bone, (sideways, down) in enumerate(grip.thumb):
        length = THUMB_BONES_MM[bone] + (TIP_PAD * THUMB_RADII_MM[3] if bone == 2 else 0.0)
        joints[2 + bone] = joints[1 + bone] + length * _direction(sideways, down)
    for finger in range(4):
        joints[5 + 4 * finger] = KNUCKLES_MM[finger]
        for bone in range(3):
            length = BONES_MM[finger, bone] + (TIP_PAD * FINGER_RADII_MM[finger, 3] if bone == 2 else 0.0)
            step = length * _direction(grip.fan[finger], grip.flexion[finger, bone])
            joints[6 + 4 * finger + bone] = joints[5 + 4 * finger + bone] + step
    return joints


def grasp_point_mm(grip: Grip, joints: np.ndarray) -> np.ndarray:
    """The point of the hand that is laid on the object, (2,) in the hand frame.

    Between thumb and fingertips for a power grip or a pinch, under the knuckles for a flat hand.
    """
    if grip.kind == "flat":
        return joints[[5, 9, 13, 10], :2].mean(axis=0)
    fingers = [8, 12] if grip.kind == "pinch" else [8, 12, 16]
    return 0.45 * joints[4, :2] + 0.55 * joints[fingers, :2].mean(axis=0)


def to_picture(points_mm: np.ndarray, forward: float, origin: np.ndarray, scale: float) -> np.ndarray:
    """Lay hand-frame points into the picture.

    Args:
        points_mm: (N, 3) or (N, 2) points in the hand frame.
        forward: direction of the hand's y axis in the picture, radians, +y down.
        origin: (2,) pixel of the wrist.
        scale: pixels per millimetre.

    Returns:
        Points of the same shape: pixels in x and y, height in pixels in z.
    """
    cos, sin = np.cos(forward), np.sin(forward)
    out = points_mm * scale
    x, y = out[:, 0].copy(), out[:, 1].copy()
    out[:, 0] = origin[0] + y * cos - x * sin
    out[:, 1] = origin[1] + y * sin + x * cos
    return out


def _direction(sideways: float, down: float) -> np.ndarray:
    return np.array([np.sin(sideways) * np.cos(down), np.cos(sideways) * np.cos(down), -np.sin(down)])
