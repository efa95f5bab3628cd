"""Where a hand can go: the rules of the mini world, with their known shares.

A rule names a part of the object, a direction for the forearm, the grips it is done with and the digits that pass
behind the object. `draw_grasp` is the conditional distribution of a grasp given the object: every contact frame is one
independent draw from it.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from data_prep.mini.hand import Grip, GripKind, Pose, draw_grip, joints_mm
from data_prep.mini.objects import SIZES, Thing
from data_prep.mini.view import SIZE, View

Direction = Literal["outward", "across", "along", "person"]
Hold = Literal["tips", "web", "crook"]
Side = Literal["right", "left"]
HiddenBy = Literal["object", "handle"]

DOWN = np.pi / 2  # the person sits at the picture's lower edge
SHOULDER = DOWN - 0.2  # and the right arm comes a little from the right
FINGERS, THUMB, NONE = frozenset({1, 2, 3, 4}), frozenset({0}), frozenset[int]()
HAND_SIZES = (0.9, 1.1)  # factors on the hand's scale: how large hands are beside things
SINK_MM = np.array([0.0, 30.0, 60.0, 90.0])  # how much lower the joints of an `under` digit lie than its grip says
# the joints, weighted 0.45 and 0.55, whose mean is laid on the part
_HOLDS: dict[Hold, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tips": ((4,), (8, 12)),
    "web": ((3,), (6, 10)),
    "crook": ((5, 6, 9, 10), (5, 6, 9, 10, 14)),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One way to take an object.

    Attributes:
        name: what it is called in the truth.
        share: its probability within the category.
        part: the grasped point: `axis` at u along the object's axis, `rim` at that share of the radius towards the
            forearm's side.
        u: (low, high) uniform range of that position, in units of the object's size.
        forearm: `outward` along the object's axis; `across` it or `along` it, from either side, the one that lies more
            downward more often: share (1 + 0.9 cos d) / 2, d its angle from straight down; `person` from
            below, a right forearm a little from the right.
        spread: standard deviation of the forearm's direction, degrees.
        grips: the grips, equally likely.
        hold: the point of the hand that is laid on the part: between thumb and finger `tips`, the `web` behind
            them, or the `crook` of the fingers' first bones.
        roll: (low, high) uniform range of the roll, degrees.
        size: (low, high) uniform factor on the hand's scale.
        under: digits that pass behind the object.
        hidden_by: what hides them: the whole object or only its handle.
        turn: mean deviation of a right forearm from its direction, degrees, positive clockwise in the picture.
    """

    name: str
    share: float
    part: Literal["axis", "rim"] = "axis"
    u: tuple[float, float]
    forearm: Direction
    spread: float
    grips: tuple[GripKind, ...]
    hold: Hold
    roll: tuple[float, float]
    size: tuple[float, float] = (0.91, 1.09)
    under: frozenset[int] = NONE
    hidden_by: HiddenBy = "object"
    turn: float = 0.0


RULES: dict[str, tuple[Rule, ...]] = {
    "Mug": (
        Rule(
            name="handle", share=0.45, u=(1.4, 1.46), forearm="outward", spread=13, grips=("handle",),
            hold="crook", roll=(25, 60), under=FINGERS,
        ),
        Rule(
            name="side", share=0.3, part="rim", u=(0.8, 1.0), forearm="person", spread=30, grips=("power",),
            hold="web", roll=(15, 45), under=FINGERS,
        ),
        Rule(
            name="rim", share=0.25, part="rim", u=(0.75, 0.95), forearm="person", spread=30, grips=("pinch",),
            hold="tips", roll=(5, 35), under=THUMB,
        ),
    ),
    "Bottle": (
        Rule(
            name="across-over", share=0.4, u=(-0.45, 0.1), forearm="across", spread=13, grips=("power",),
            hold="crook", roll=(-10, 15), under=THUMB,
        ),
        Rule(
            name="across-under", share=0.4, u=(-0.45, 0.1), forearm="across", spread=13, grips=("power",),
            hold="web", roll=(15, 45), under=FINGERS,
        ),
        Rule(
            name="neck", share=0.2, u=(0.55, 0.75), forearm="across", spread=16, grips=("pinch", "handle"),
            hold="crook", roll=(0, 30), under=THUMB,
        ),
    ),
    "Bowl": (
        Rule(
            name="rim-fingers-in", share=0.4, part="rim", u=(0.85, 1.0), forearm="person", spread=36,
            grips=("power", "pinch"), hold="crook", roll=(-10, 20), under=THUMB,
        ),
        Rule(
            name="rim-thumb-in", share=0.4, part="rim", u=(0.9, 1.05), forearm="person", spread=36, grips=("power",),
            hold="web", roll=(15, 45), under=FINGERS,
        ),
        Rule(
            name="inside", share=0.2, part="rim", u=(0.1, 0.4), forearm="person", spread=25, grips=("pinch",),
            hold="tips", roll=(-10, 20),
        ),
    ),
    "Knife": (
        Rule(
            name="handle-along", share=0.6, u=(0.45, 0.6), forearm="outward", spread=12, grips=("handle",),
            hold="crook", roll=(20, 60), under=FINGERS, turn=-20,
        ),
        Rule(
            name="handle-across", share=0.4, u=(0.5, 0.7), forearm="across", spread=14, grips=("power", "handle"),
            hold="web", roll=(15, 50), under=FINGERS,
        ),
    ),
    "ToyCar": (
        Rule(
            name="top", share=0.6, u=(-0.1, 0.3), forearm="along", spread=30, grips=("pinch",),
            hold="tips", roll=(-10, 25), under=THUMB,
        ),
        Rule(
            name="sides", share=0.4, u=(-0.2, 0.3), forearm="across", spread=16, grips=("power",),
            hold="crook", roll=(-10, 20), under=THUMB,
        ),
    ),
    "Kettle": (
        Rule(
            name="handle", share=0.7, u=(1.56, 1.64), forearm="outward", spread=13, grips=("handle",),
            hold="crook", roll=(20, 60), under=FINGERS,
        ),
        Rule(
            name="lid", share=0.3, u=(-0.05, 0.05), forearm="person", spread=30, grips=("pinch",),
            hold="tips", roll=(10, 40),
        ),
    ),
    "Bucket": (
        Rule(
            name="bail", share=0.7, u=(-0.05, 0.05), forearm="along", spread=13, grips=("handle",),
            hold="crook", roll=(-5, 35), under=FINGERS, hidden_by="handle",
        ),
        Rule(
            name="rim", share=0.3, part="rim", u=(0.9, 1.0), forearm="person", spread=32, grips=("power", "pinch"),
            hold="crook", roll=(-10, 20), under=THUMB,
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Grasp:
    """A drawn hand, ready to be painted.

    Attributes:
        rule: name of the rule it follows.
        grip: the hand's angles, those of the mirrored hand for a left one.
        forearm: direction wrist to elbow in the picture, radians, +y down.
        joints: (21, 3) joints, pixels and height.
        scale: pixels per millimetre.
        side: right or left hand.
        roll: rotation about the hand's long axis, radians; positive turns the thumb's side up.
        under: digits that pass behind the object, 0 (thumb) to 4 (little finger).
        hidden_by: what hides them: the whole object or only its handle.
    """

    rule: str
    grip: Grip
    forearm: float
    joints: np.ndarray
    scale: float
    side: Side
    roll: float
    under: frozenset[int]
    hidden_by: HiddenBy

    @cached_property
    def pose(self) -> Pose:
        """Where a right hand's frame lies."""
        return Pose(self.forearm + np.pi + self.grip.bend, self.roll, self.joints[0, :2], self.scale)


def draw_grasp(thing: Thing, view: View, scale: float, rng: np.random.Generator, side: Side = "right") -> Grasp:
    """Draw a grasp of an object from the rules of its category.

    Args:
        thing: the object.
        view: the clip's camera: a nearer hand is larger.
        scale: pixels per millimetre in the picture's middle row.
        rng: the frame's generator.
        side: which hand; the law of a left hand is the mirror image of a right hand's.
    """
    if side == "left":
        flipped = replace(thing, centre=thing.centre * [-1, 1] + [SIZE[0], 0], angle=np.pi - thing.angle)
        return mirrored(draw_grasp(flipped, view, scale, rng))
    rules = RULES[thing.category]
    rule = rules[rng.choice(len(rules), p=[r.share for r in rules])]
    forearm = _forearm(rule, thing, rng)
    grip = draw_grip(rule.grips[rng.integers(len(rule.grips))], rng)
    u = rng.uniform(*rule.u)
    roll = float(np.radians(rng.uniform(*rule.roll)))
    back = np.array([np.cos(forearm), np.sin(forearm)])
    target = thing.point(u, 0.0) if rule.part == "axis" else thing.centre + u * thing.size * back * [1, thing.squash]
    target = target + rng.normal(0, 3, 2)
    # A crop cut to its object does not show how large that is. So a larger one is a nearer one, with a larger hand, and
    # how large hands are beside things is drawn for each frame: a layout has no cause that no picture shows.
    nearness = thing.size / np.mean(SIZES[thing.category]) / view.magnification(float(thing.centre[1]))
    hand = rng.uniform(*rule.size) * rng.uniform(*HAND_SIZES)
    scale = float(scale * nearness * view.magnification(float(target[1])) * hand)

    joints = joints_mm(grip)
    pose = Pose(forearm + np.pi + grip.bend, roll, np.zeros(2), scale)
    placed = pose.place(joints)
    thumb, fingers = _HOLDS[rule.hold]
    hold = 0.45 * placed[list(thumb), :2].mean(axis=0) + 0.55 * placed[list(fingers), :2].mean(axis=0)
    placed[:, :2] += target - hold
    for digit in rule.under:
        placed[1 + 4 * digit : 5 + 4 * digit, 2] -= scale * SINK_MM
    return Grasp(
        rule=rule.name,
        grip=grip,
        forearm=forearm,
        joints=placed,
        scale=scale,
        side="right",
        roll=pose.roll,
        under=rule.under,
        hidden_by=rule.hidden_by,
    )


def mirrored(grasp: Grasp) -> Grasp:
    """The same hand in the mirrored picture: a left hand for a right one, and the other way round."""
    return replace(
        grasp,
        joints=grasp.joints * [-1, 1, 1] + [SIZE[0], 0, 0],
        forearm=float(np.pi - grasp.forearm),
        side="left" if grasp.side == "right" else "right",
    )


def _forearm(rule: Rule, thing: Thing, rng: np.random.Generator) -> float:
    if rule.forearm == "person":
        direction = SHOULDER
    elif rule.forearm == "outward":
        direction = thing.angle
    else:
        end = thing.angle + (np.pi / 2 if rule.forearm == "across" else 0.0)
        near = (1 + 0.9 * np.cos(end - DOWN)) / 2
        direction = end if rng.random() < near else end + np.pi
    return float(direction + np.radians(rule.turn + rng.normal(0, rule.spread)))
