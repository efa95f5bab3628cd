"""What else lies on the table."""

from typing import Literal

import numpy as np

from data_prep.mini.objects import INSTANCES, PAINTERS, SIZES, Painted, Thing, draw_looks, paint_thing
from data_prep.mini.view import View

Scene = Literal["alone", "clutter"]

_NEARBY = 2.6  # the pairs' crop, over the object's longer side
_GAP = 14.0  # pixels between footprints
_TRIES = 24
_DISTRACTORS = [name for name in SIZES if name != "Kettle"]  # the category that no training picture shows
_TABLE = ((300, 240), (1620, 880))  # x, y of the corners of what is hardly ever floor, pixels
# smallest and largest size, pixels at the middle row
_PROP_SIZES = {
    "Book": (110, 150),
    "Notebook": (110, 150),
    "Pen": (75, 95),
    "Phone": (72, 88),
    "Plate": (90, 130),
    "Fruit": (36, 48),
    "Spoon": (80, 105),
    "Box": (60, 100),
    "Case": (75, 90),
}


def draw_clutter(seed: int, thing: Thing, view: View, rng: np.random.Generator, scene: Scene) -> list[Painted]:
    """Draw what lies around the object, far things first.

    Args:
        seed: the world's seed: distractors belong to it as its objects do.
        thing: the object; nothing overlaps it.
        view: camera and light.
        rng: the clip's generator.
        scene: `alone` 0 or 1 thing outside the object's crop; `clutter` 3 to 6, about half of them inside it.
    """
    count = int(rng.integers(3, 7)) if scene == "clutter" else int(rng.random() < 0.5)
    taken = [_footprint(thing)]
    others: list[Thing] = []
    for number in range(count):
        near = scene == "clutter" and (number < 2 or rng.random() < 0.3)
        for _ in range(_TRIES):
            other = _draw_other(seed, thing, view, rng, near)
            if other is None:
                continue
            box = _footprint(other)
            if not any(_overlap(box, one) for one in taken):
                taken.append(box)
                others.append(other)
                break
    return [paint_thing(other, view) for other in sorted(others, key=lambda other: float(other.centre[1]))]


def _draw_other(seed: int, thing: Thing, view: View, rng: np.random.Generator, near: bool) -> Thing | None:
    """Draw a thing and its place: `near` within the object's crop, else outside it; None where that fails."""
    main = rng.random() < 0.55
    names = _DISTRACTORS if main else list(_PROP_SIZES)
    name = names[rng.integers(len(names))]
    # no instance that is grasped in any clip lies about in another, so that unseen ones stay unseen
    shape, colours = draw_looks(seed, name, INSTANCES + int(rng.integers(1, INSTANCES + 1)))
    low, high = SIZES[name] if main else _PROP_SIZES[name]
    size = rng.uniform(low, high) * (rng.uniform(0.55, 0.9) if main else 1.0)
    crop = _NEARBY * PAINTERS[thing.category].reach * thing.size
    if near:
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.55, 0.95)
        centre = thing.centre + crop * far * np.array([np.cos(angle), np.sin(angle)])
    else:
        centre = rng.uniform(*_TABLE)
    outside = float(np.abs(centre - thing.centre).max()) - PAINTERS[name].reach * size > crop
    if not near and not outside:
        return None
    size *= view.magnification(float(centre[1]))
    return Thing(name, centre, float(rng.uniform(0, 2 * np.pi)), float(size), shape, colours, view.squash)


def _footprint(thing: Thing) -> tuple[float, float, float, float]:
    """Box x0, y0, x1, y1 that holds the thing, pixels."""
    painter = PAINTERS[thing.category]
    reach = painter.reach * thing.size
    x, y = thing.centre
    return x - reach, y - reach * thing.squash, x + reach, y + (reach + painter.below * thing.size) * thing.squash


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] + _GAP and b[0] < a[2] + _GAP and a[1] < b[3] + _GAP and b[1] < a[3] + _GAP
