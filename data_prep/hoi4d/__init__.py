"""Reader of HOI4D as it is downloaded: sequences, masks, action events, hand keypoints, video; unpacked or zipped.

Frames are 0-based everywhere. Whatever is wrong with a file is a `Fault` with a reason and a path: the caller decides
whether that costs a frame or a sequence, and writes it into the ledger.
"""

from data_prep.hoi4d.classes import CATEGORIES, FPS, HEIGHT, LEFT_HAND, PALETTE, RIGHT_HAND, WIDTH
from data_prep.hoi4d.events import Event, read_events
from data_prep.hoi4d.masks import read_labels
from data_prep.hoi4d.poses import read_keypoints
from data_prep.hoi4d.sequence import HOI4D, Sequence, find_sequences
from data_prep.hoi4d.video import count_frames, decode_video
from data_prep.labels import bounding_box
from data_prep.sources import Box, Fault, Side

__all__ = [
    "CATEGORIES",
    "FPS",
    "HEIGHT",
    "HOI4D",
    "LEFT_HAND",
    "PALETTE",
    "RIGHT_HAND",
    "WIDTH",
    "Box",
    "Event",
    "Fault",
    "Sequence",
    "Side",
    "bounding_box",
    "count_frames",
    "decode_video",
    "find_sequences",
    "read_events",
    "read_keypoints",
    "read_labels",
]
