"""The traps of HOI4D that the mini world plants, so that a reader that walks into one is found out.

One trap is always there, as it is in all of HOI4D: the hand's mask holds the forearm and the sleeve too, up to the
picture's border, while the 21 keypoints hold the hand alone.
"""

import difflib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from data_prep.mini.world import Clip

SMALL_TREE = 12  # clips; below it nothing is planted that costs a frame or changes the hands
FULL_TREE = 40  # clips; from here on every trap is planted


@dataclass(frozen=True)
class Trap:
    """One way in which HOI4D surprises its readers.

    Attributes:
        name: as in `--traps` and traps.json.
        source: where it is known from.
        about: what HOI4D does.
        share: of the clips that get it; 0 for what belongs to the tree, not to clips.
        place: what it changes, words; a clip has one trap per word.
        drop: reason that the ledger must give for each of its frames, or None: nothing may be lost by it.
        whole: whether it costs the whole clip.
    """

    name: str
    source: str
    about: str
    share: float
    place: str = ""
    drop: str | None = None
    whole: bool = False


_ISSUE = "HOI4D issue"
# fmt: off
TRAPS = {trap.name: trap for trap in (
    # of the tree
    Trap("crlf_list", "release.txt, testset.txt of HOI4D",
         "lists have CRLF line ends; the test list repeats lines, names released clips and has no final newline", 0),
    Trap("black_borders", f"{_ISSUE} #14",
         "frames of cameras 2 to 4 are shifted: black columns at the left, black rows at the bottom", 1),
    Trap("shift_mask", f"{_ISSUE}s #4, #14",
         "masks of cameras 2 to 4 lie in 2Dseg/shift_mask instead of 2Dseg/mask", 1),
    # that cost a clip
    Trap("truncated_mp4", "readers guard against it", "the video breaks off and cannot be opened",
         .0125, "clip", "undecodable-video", whole=True),
    Trap("no_2dseg", "ZY20210800004/H4/C5/N15/S56/s02/T1", "there are no masks at all",
         .0125, "clip", "no-mask-folder", whole=True),
    Trap("empty_action", "ZY20210800003/H3/C3/N44/S284/s01/T2", "action/color.json is empty",
         .0125, "clip", "no-actions", whole=True),
    Trap("unlisted_video", f"{_ISSUE}s #8, #9, #15",
         "a test clip has a video and nothing else; testset.txt names it, release.txt does not",
         .0125, "clip", "not-listed", whole=True),
    # that cost frames
    Trap("unknown_event", "supplement of the HOI4D paper, fig. 5", "an event has a name outside the documented list",
         .025, "event frames", "unknown-event"),
    Trap("black_mask", "Affordance Diffusion takes it all for hand", "a mask is all black though a hand is there",
         .025, "mask frames", "no-hand"),
    Trap("missing_mask", "readers guard against it", "single masks are missing", .025, "mask frames", "no-mask"),
    # that cost nothing
    Trap("schema_b", f"{_ISSUE} #3",
         "events are under markResult.marks with hdTimeStart and hdTimeEnd", .125, "schema"),
    Trap("ten_second_clock", f"{_ISSUE} #27", "times and duration run at half speed, the video does not", .1, "clock"),
    Trap("missing_duration", "8 of 354 furniture clips", "info has no duration", .05, "duration"),
    Trap("capital_duration", "readers try both", "the key is spelled Duration", .1, "duration"),
    Trap("indexed_mask", "readers convert to RGB", "some masks are indexed PNGs", .06, "mask"),
    Trap("grey_mask", "readers meet 2-D arrays", "some masks have one channel, of labels", .06, "mask"),
    Trap("left_hand", "label.csv of HOI4D",
         "a bucket (C8) is held by a left hand, label 6; there is no right hand", .025, "hands"),
    Trap("unlabelled_left_hand", "label.csv of HOI4D",
         "a left hand lies in the picture as background: only C8, C17 and C20 label it", .04, "hands"),
    Trap("no_pickle", f"{_ISSUE} #31", "there is no hand pose at all", .05, "pickle folder padding"),
    Trap("broken_pickle", f"{_ISSUE} #19", "poseCoeff has one number, or kps2D is NaN", .05, "pickle"),
    Trap("jittery_keypoints", f"{_ISSUE} #16",
         "keypoints are 10 to 20 pixels off, another way each frame", .05, "pickle"),
    Trap("outside_keypoints", "readers clip them", "a hand's keypoints lie outside the picture", .03, "pickle"),
    Trap("new_hand_folder", "two archives; EgoVLA issue #14",
         "pickles lie in Hand_pose/handpose_right_hand instead of handpose/refinehandpose_right", .4, "folder"),
    Trap("padded_pickle", "readers try both", "pickles are named with five digits", .1, "padding"),
    Trap("unpadded_objpose", "readers try both", "objpose files are named without leading zeros", .5, "objpose"),
    Trap("objpose_frame_id", f"{_ISSUE} #21", "frameId inside an objpose file is another frame's", .3, "frame-id"),
)}
# fmt: on


def chosen_traps(text: str) -> frozenset[str]:
    """Read the value of `--traps`: `none`, `all`, or names with commas.

    Raises:
        InputError: there is no such trap.
    """
    if text in ("none", "all"):
        return frozenset(TRAPS if text == "all" else ())
    names = frozenset(name.strip() for name in text.split(","))
    for name in sorted(names - set(TRAPS)):
        nearest = difflib.get_close_matches(name, ["none", "all", *TRAPS], 1, 0)[0]
        raise InputError(f"--traps {name}: no such trap; did you mean {nearest}?")
    return names


def plant_traps(seed: int, clips: int, chosen: Iterable[str]) -> list[frozenset[str]]:
    """Choose each clip's traps.

    Args:
        seed: the world's seed.
        clips: number of clips.
        chosen: names of the traps to plant.

    Returns:
        Per clip, the names of its traps. A clip that is lost as a whole has no other trap but the tree's own.
    """
    planted: list[set[str]] = [set() for _ in range(clips)]
    lost: set[int] = set()
    chosen = frozenset(chosen)
    for trap in (trap for trap in TRAPS.values() if trap.name in chosen):
        if trap.share == 1:
            for names in planted:
                names.add(trap.name)
            continue
        rng = np.random.default_rng([seed, zlib.crc32(trap.name.encode())])
        candidates = [
            int(clip) for clip in rng.permutation(clips) if clip not in lost and not _clash(trap, planted[clip])
        ]
        for clip in candidates[: _count(trap, clips, len(lost))]:
            planted[clip].add(trap.name)
            if trap.whole:
                lost.add(clip)
    return [frozenset(names) for names in planted]


def _clash(trap: Trap, planted: set[str]) -> bool:
    return any(set(trap.place.split()) & set(TRAPS[name].place.split()) for name in planted)


def _count(trap: Trap, clips: int, num_lost: int) -> int:
    """Number of clips that get a trap; `num_lost` are lost already."""
    if trap.share == 0 or ((trap.drop or trap.place == "hands") and clips < SMALL_TREE):
        return 0
    if trap.whole and clips < FULL_TREE:
        return int(num_lost < clips // SMALL_TREE)
    return max(1, round(trap.share * clips))


def frames_of(trap: str, clip: "Clip") -> list[int] | None:
    """Frames of a clip that a trap touches, None where it is the whole clip.

    Args:
        trap: its name.
        clip: a clip that has it.
    """
    from data_prep.mini.world import CONTACT_EVENTS

    contact = [frame for frame in range(clip.frames) if clip.event(frame) in CONTACT_EVENTS]
    with_hand = [frame for frame in range(clip.frames) if clip.event(frame) != "rest"]
    match trap:
        case "unknown_event":
            return [frame for frame in contact if clip.event(frame) == renamed_event(clip)]
        case "black_mask":
            return contact[len(contact) // 3 :: len(contact)]
        case "missing_mask":
            return contact[1 :: max(len(contact) // 3, 1)]
        case "indexed_mask":
            return list(range(1, clip.frames, 3))
        case "grey_mask":
            return list(range(2, clip.frames, 4))
        case "broken_pickle":
            return with_hand[1::3]
        case "outside_keypoints":
            return with_hand[2::4]
        case "jittery_keypoints":
            return with_hand
    return None


def renamed_event(clip: "Clip") -> str:
    """The contact event that `unknown_event` gives another name."""
    from data_prep.mini.world import CONTACT_EVENTS

    return CONTACT_EVENTS[1 + clip.index % (len(CONTACT_EVENTS) - 1)]


def trap_record(clips: "list[Clip]", chosen: Iterable[str]) -> dict[str, Any]:
    """The content of traps.json: every trap planted, where, and the drop reason it must have in a build's ledger."""
    tree = [name for name in TRAPS if name in frozenset(chosen) and TRAPS[name].share == 0]
    records: list[dict[str, Any]] = [{"trap": name, "sequence": None, "frames": None, "expect": None} for name in tree]
    for clip in clips:
        for name in (name for name in TRAPS if name in clip.traps):
            if TRAPS[name].share == 1 and clip.camera == 1:
                continue  # it has neither border nor shift
            if name == "shift_mask" and clip.traps & {"no_2dseg", "unlisted_video"}:
                continue  # there are no masks
            records.append(
                {
                    "trap": name,
                    "sequence": clip.sequence,
                    "frames": frames_of(name, clip),
                    "expect": TRAPS[name].drop,
                }
            )
    return {"traps": records}
