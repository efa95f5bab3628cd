"""Which clips each split of the mini world is made of."""

from dataclasses import dataclass
from typing import Literal

from data_prep.mini.objects import INSTANCES

Split = Literal["all", "train", "seen", "unseen", "category", "clutter", "varied"]

KETTLE = 12
TRAIN_CATEGORIES = (2, 1, 7, 5, 13)
MAX_CLIPS = 5_760  # beyond it sequence names would repeat
SEEN_INSTANCES = 36  # of each category; the others are `unseen`
CLUTTER_SHARE = 0.35


@dataclass(frozen=True)
class Roster:
    """Which clips a split is made of.

    Attributes:
        categories: HOI4D's class ids, taken in turn.
        first: the first instance of each category.
        last: the last one.
        stream: number that keeps the split's clips apart from the others'.
        clutter: share of the clips whose object lies among others.
    """

    categories: tuple[int, ...]
    first: int
    last: int
    stream: int
    clutter: float = CLUTTER_SHARE


ROSTERS: dict[Split, Roster] = {
    "all": Roster((*TRAIN_CATEGORIES, KETTLE), 1, INSTANCES, 0),
    "train": Roster(TRAIN_CATEGORIES, 1, SEEN_INSTANCES, 1),
    "seen": Roster(TRAIN_CATEGORIES, 1, SEEN_INSTANCES, 2),
    "unseen": Roster(TRAIN_CATEGORIES, SEEN_INSTANCES + 1, INSTANCES, 3),
    "category": Roster((KETTLE,), 1, INSTANCES, 4),
    "clutter": Roster(TRAIN_CATEGORIES, SEEN_INSTANCES + 1, INSTANCES, 5, clutter=1.0),
    "varied": Roster(TRAIN_CATEGORIES, 1, MAX_CLIPS, 6),
}
