"""The skeleton of a drawn right hand: 21 joints from a grip, in millimetres and then in picture pixels.

Hand frame: x to the little finger's side, y from the wrist towards the fingers, z towards the camera (the back of the
hand is seen), origin at the wrist. Joint order is manopth's: wrist, thumb 1-4, index 5-8, middle, ring, little.
Digits count 0 (thumb) to 4 (little finger). Left hands are mirror images: nothing here knows of them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

GripKind = Literal["power", "pinch", "handle"]

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
_ROOTS_MM = np.concatenate([THUMB_BASE_MM[None], KNUCKLES_MM])
_REACHES_MM = np.concatenate([THUMB_BONES_MM[None], BONES_MM])
_REACHES_MM[:, 2] += TIP_PAD * np.append(THUMB_RADII_MM[3], FINGER_RADII_MM[:, 3])


@dataclass(frozen=True)
class Grip:
    """Angles of a hand.

    Attributes:
        kind: power, pinch or handle.
        flexion: (4, 3) cumulated downward angles of index to little finger's bones, radians.
        fan: (4,) sideways angles of the four fingers, radians, positive towards the little finger.
        thumb: (3, 2) sideways and downward angles of the thumb's bones, radians.
        twist: angle by which the thumb's nail faces away from the index finger, radians.
        bend: angle between the forearm and the hand, radians.
    """

    kind: GripKind
    flexion: np.ndarray
    fan: np.ndarray
    thumb: np.ndarray
    twist: float
    bend: float


@dataclass(frozen=True)
class Pose:
    """Where a hand lies in the picture.

    Attributes:
        forward: direction of the hand's y axis in the picture, radians, +y down.
        roll: rotation about the hand's y axis, radians; positive turns the thumb's side up.
        origin: (2,) pixel of the wrist.
        scale: pixels per millimetre.
    """

    forward: float
    roll: float
    origin: np.ndarray
    scale: float

    @property
    def turn(self) -> np.ndarray:
        """(3, 3) rotation of hand-frame vectors (as rows, from the left) into x, y, height of the picture."""
        cos, sin = math.cos(self.forward), math.sin(self.forward)
        c, s = math.cos(self.roll), math.sin(self.roll)
        return np.array([[-sin * c, cos * c, -s], [cos, sin, 0.0], [-sin * s, cos * s, c]])

    def place(self, points_mm: np.ndarray) -> np.ndarray:
        """Lay (N, 3) points of the hand frame into the picture: pixel x, y and height in pixels."""
        out = points_mm @ (self.scale * self.turn)
        out[:, :2] += self.origin
        return out


# kind: MCP, PIP, DIP flexion; thumb sideways (three bones); thumb downwards; fan factor; twist; in degrees
_GRIPS: dict[GripKind, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], float, float]] = {
    "power": ((22, 38, 22), (-48, -16, 4), (12, 20, 26), 1.1, 40),
    "pinch": ((38, 44, 16), (-40, -6, 18), (16, 26, 30), 0.8, 45),
    "handle": ((28, 62, 40), (-32, -6, 16), (0, 6, 14), 0.5, 25),
}


def draw_grip(kind: GripKind, rng: np.random.Generator) -> Grip:
    """Draw a grip of a kind: its typical angles plus a person's and a finger's own spread."""
    flexion, sideways, down, fan, twist = _GRIPS[kind]
    bones = np.array(flexion) * rng.uniform(0.8, 1.15) + rng.normal(0, 3, (4, 3))
    if kind == "pinch":  # ring and little finger are curled away from the pinch
        bones[2:] += np.array([[10.0, 14.0, 10.0], [16.0, 20.0, 14.0]])
    bones[:, 0] += np.array([-1.5, 0.0, 1.5, 3.0])  # a hand closes from the little finger's side
    flexed = np.minimum(np.maximum(bones.cumsum(axis=1), 0), 178)
    spread = FAN_DEGREES * fan * rng.uniform(0.7, 1.3) + rng.normal(0, 1.2, 4)
    thumb = np.empty((3, 2))
    thumb[:, 0] = np.add(sideways, rng.normal(0, 5))
    thumb[:, 1] = np.add(down, rng.normal(0, 4))
    return Grip(
        kind=kind,
        flexion=np.radians(flexed),
        fan=np.radians(spread),
        thumb=np.radians(thumb),
        twist=float(np.radians(twist)),
        bend=float(np.radians(rng.normal(0, 7))),
    )


def bones(grip: Grip) -> tuple[np.ndarray, np.ndarray]:
    """Directions of the bones and of the skin over them.

    Returns:
        Unit vectors in the hand frame, both (5, 3, 3) for digit, bone and coordinate: along the bone towards the tip;
        the way its back faces, the nail's side.
    """
    sideways, down = np.empty((5, 3)), np.empty((5, 3))
    sideways[0], sideways[1:] = grip.thumb[:, 0], grip.fan[:, None]
    down[0], down[1:] = grip.thumb[:, 1], grip.flexion
    ss, cs, sd, cd = np.sin(sideways), np.cos(sideways), np.sin(down), np.cos(down)
    along, back = np.empty((5, 3, 3)), np.empty((5, 3, 3))
    along[..., 0], along[..., 1], along[..., 2] = ss * cd, cs * cd, -sd
    back[..., 0], back[..., 1], back[..., 2] = ss * sd, cs * sd, cd
    back[0] *= math.cos(grip.twist)
    back[0, :, 0] -= math.sin(grip.twist) * cs[0]
    back[0, :, 1] += math.sin(grip.twist) * ss[0]
    return along, back


def joints_mm(grip: Grip) -> np.ndarray:
    """Forward kinematics: (21, 3) joints in the hand frame, millimetres."""
    chains = np.zeros((21, 3))
    digits = chains[1:].reshape(5, 4, 3)
    digits[:] = _ROOTS_MM[:, None]
    digits[:, 1:] += (_REACHES_MM[..., None] * bones(grip)[0]).cumsum(axis=1)
    return chains
