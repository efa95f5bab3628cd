"""Where a hand can go: the rules of the mini world, with their known shares.

A rule names a part of the object, a direction for the forearm and the grips it is done with. `draw_grasp` is the
conditional distribution of a grasp given the object: every contact frame is one independent draw from it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.mini.hand import Grip, GripKind, draw_grip, grasp_point_mm, joints_mm, to_picture
from data_prep.mini.objects import Thing

Direction = Literal["outward", "sides", "person"]

DOWN = np.pi / 2  # the person sits at the picture's lower edge


@dataclass(frozen=True)
class Rule:
    """One way to take an object.

    Attributes:
        name: what it is called in the truth.
        share: its probability within the category.
        part: the grasped point: `axis` at u along the object's axis, `rim` at that share of the radius towards the
            forearm's side.
        u: (low, high) uniform range of that position, in units of the object's size.
        forearm: `outward` along the object's axis; `sides` across it, from either side, the one that lies more
            downward more often: share (1 + 0.9 cos d) / 2, d its angle from straight down; `person` from below.
        spread: standard deviation of the forearm's direction, degrees.
        grips: the grips, equally likely.
    """

    name: str
    share: float
    part: Literal["axis", "rim"]
    u: tuple[float, float]
    forearm: Direction
    spread: float
    grips: tuple[GripKind, ...]


RULES: dict[str, tuple[Rule, ...]] = {
    "Mug": (
        Rule("handle", 0.5, "axis", (1.15, 1.35), "outward", 14, ("power", "pinch")),
        Rule("rim", 0.5, "rim", (0.55, 0.95), "person", 32, ("power", "pinch")),
    ),
    "Bottle": (Rule("across", 1.0, "axis", (-0.45, 0.25), "sides", 14, ("power", "flat")),),
    "Bowl": (
        Rule("rim", 0.8, "rim", (0.7, 0.92), "person", 38, ("power", "pinch")),
        Rule("inside", 0.2, "rim", (0.1, 0.4), "person", 25, ("power", "flat")),
    ),
    "Knife": (
        Rule("handle-along", 0.5, "axis", (0.5, 0.75), "outward", 12, ("power", "pinch")),
        Rule("handle-across", 0.5, "axis", (0.45, 0.75), "sides", 14, ("power", "pinch")),
    ),
    "ToyCar": (
        Rule("top", 0.6, "rim", (0.1, 0.4), "person", 30, ("power", "pinch")),
        Rule("sides", 0.4, "axis", (-0.1, 0.3), "sides", 14, ("power", "pinch")),
    ),
}


@dataclass(frozen=True)
class Grasp:
    """A drawn hand, ready to be painted.

    Attributes:
        rule: name of the rule it follows.
        grip: the hand's angles.
        forearm: direction wrist to elbow in the picture, radians, +y down.
        joints: (21, 3) joints, pixels and height.
        scale: pixels per millimetre.
    """

    rule: str
    grip: Grip
    forearm: float
    joints: np.ndarray
    scale: float


def draw_grasp(thing: Thing, scale: float, rng: np.random.Generator, away: float = 0.0) -> Grasp:
    """Draw a grasp of an object from the rules of its category.

    Args:
        thing: the object.
        scale: the person's pixels per millimetre.
        rng: the frame's generator.
        away: pixels by which the hand stays back along its forearm: a hand that still reaches, or lets go.
    """
    rules = RULES[thing.category]
    rule = rules[rng.choice(len(rules), p=[r.share for r in rules])]
    forearm = _forearm(rule, thing, rng)
    grip = draw_grip("flat" if away else rule.grips[rng.integers(len(rule.grips))], rng)
    u = rng.uniform(*rule.u)
    if rule.part == "axis":
        target = thing.point(u, 0.0)
    else:
        target = thing.centre + u * thing.size * np.array([np.cos(forearm), np.sin(forearm)])
    target = target + rng.normal(0, 5, 2) + away * np.array([np.cos(forearm), np.sin(forearm)])

    scale = scale * rng.uniform(0.97, 1.03)
    forward = forearm + np.pi + grip.bend
    joints = joints_mm(grip)
    grasp_point = to_picture(grasp_point_mm(grip, joints)[None], forward, np.zeros(2), scale)[0]
    return Grasp(rule.name, grip, forearm, to_picture(joints, forward, target - grasp_point, scale), scale)


def _forearm(rule: Rule, thing: Thing, rng: np.random.Generator) -> float:
    if rule.forearm == "person":
        direction = DOWN
    elif rule.forearm == "outward":
        direction = thing.angle
    else:
        side = thing.angle + np.pi / 2
        near = (1 + 0.9 * np.cos(side - DOWN)) / 2
        direction = side if rng.random() < near else side + np.pi
    return float(direction + np.radians(rng.normal(0, rule.spread)))
