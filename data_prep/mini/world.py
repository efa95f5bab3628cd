"""One clip of the mini world: a table, an object lying still, and a fresh hand in every contact frame."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import cv2
import numpy as np

from data_prep.mini.affordance import Grasp, HiddenBy, Side, draw_grasp
from data_prep.mini.arm import COARSE, LAYER, Arm, Skin, draw_skin, paint_arm
from data_prep.mini.canvas import Painted, lay
from data_prep.mini.clutter import Scene, draw_clutter
from data_prep.mini.objects import Thing, draw_thing, paint_thing
from data_prep.mini.splits import ROSTERS, Split
from data_prep.mini.table import draw_table
from data_prep.mini.view import SIZE, View, draw_view

Event = Literal["rest", "Reachout", "Grasp", "Pickup", "carry", "putdown", "Stop"]

CONTACT_EVENTS: tuple[Event, ...] = ("Grasp", "Pickup", "carry", "putdown")
BORDERS = {1: (0, 0), 2: (15, 3), 3: (15, 30), 4: (15, 3)}  # camera: black columns left, black rows at the bottom
MIN_FRAMES = 8
BUCKET = 8
SCALE = 1.41  # pixels per millimetre at the middle row; a clip of its own would be a cause that no picture shows
_REACH = 32  # pixels of the arm's layer by which a shadow leaves its window
_SOFT = 4  # shadows are drawn at this fraction of the layer's size
_AWAY = 320.0  # pixels from which a hand comes, and to which it goes
_TRUTH_STREAM, _NOISE_STREAM, _LEFT_STREAM = 2_000_000, 1_000_000, 3_000_000  # beside the frames' numbers


@dataclass(frozen=True)
class Frame:
    """One drawn frame.

    Attributes:
        background: uint8 (1080, 1920, 3), what it shows outside the window.
        window: x0, y0, x1, y1 of the part of the picture that differs from a frame without a hand, even numbers; None
            without a hand.
        patch: uint8 (h, w, 3), what it shows within the window; None without a hand.
        hand: bool, the visible pixels of hand, forearm and sleeve within the window; None without a hand.
        grasp: how the hand was drawn; None without a hand.
    """

    background: np.ndarray
    window: tuple[int, int, int, int] | None = None
    patch: np.ndarray | None = None
    hand: np.ndarray | None = None
    grasp: Grasp | None = None

    @property
    def rgb(self) -> np.ndarray:
        """The whole picture, uint8 (1080, 1920, 3)."""
        rgb = self.background.copy()
        if self.window is not None:
            x0, y0, x1, y1 = self.window
            rgb[y0:y1, x0:x1] = self.patch
        return rgb

    @property
    def keypoints(self) -> np.ndarray | None:
        """(21, 2) pixels in manopth's joint order."""
        return None if self.grasp is None else self.grasp.joints[:, :2]

    @property
    def hand_mask(self) -> np.ndarray:
        """Visible pixels of hand, forearm and sleeve, bool (1080, 1920)."""
        mask = np.zeros((SIZE[1], SIZE[0]), bool)
        if self.window is not None:
            x0, y0, x1, y1 = self.window
            mask[y0:y1, x0:x1] = self.hand
        return mask


class Clip:
    """One sequence; everything in it follows from (seed, split, index) and its traps.

    Attributes:
        category: HOI4D's class id.
        instance: number of the object inside its category.
        camera: 1 to 4.
        scene: whether the object lies alone or among clutter.
        side: the hand that grasps.
        view: camera and light.
        thing: the object.
        skin: whose hand it is.
    """

    def __init__(
        self, seed: int, index: int, frames: int, split: Split = "all", traps: frozenset[str] = frozenset()
    ) -> None:
        """Draw the clip's set-up; pictures are drawn when they are asked for.

        Args:
            seed: the world's seed, ≥ 0; an object's looks depend on it and on (category, instance) alone.
            index: the clip's number, in [0, MAX_CLIPS).
            frames: number of frames, ≥ MIN_FRAMES.
            split: which clips are drawn.
            traps: those that show in the pictures: `black_borders`; `left_hand`, a bucket grasped by a left hand;
                `unlabelled_left_hand`, a second hand that lies still on the table in every frame.
        """
        roster = ROSTERS[split]
        self.seed, self.index, self.frames, self.split, self.traps = seed, index, frames, split, traps
        self._stream = (seed, roster.stream, index)
        rng = np.random.default_rng(np.random.SeedSequence([*self._stream]))
        turn, place = divmod(index, len(roster.categories))
        self.category = BUCKET if "left_hand" in traps else roster.categories[place]
        self.instance = roster.first + turn % (roster.last - roster.first + 1)
        self.side: Side = "left" if "left_hand" in traps else "right"
        self.camera = int(rng.integers(1, 5))
        self.task = int(rng.integers(1, 3))
        self.scene: Scene = "clutter" if rng.random() < roster.clutter else "alone"
        self.view: View = draw_view(rng)
        self.thing: Thing = draw_thing(seed, self.category, self.instance, rng, self.view)
        self.skin: Skin = draw_skin(rng, self.view.tint)
        self._scenery_rng = rng

    @property
    def sequence(self) -> str:
        """HOI4D's seven-level path."""
        room, layout = 1 + self.index * 37 % 384, 1 + self.index // 384 % 5
        c, n = f"C{self.category}", f"N{self.instance:02d}"
        return f"ZY2021080000{self.camera}/H{self.camera}/{c}/{n}/S{room}/s{layout:02d}/T{self.task}"

    @property
    def valid(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the part of a frame that holds picture."""
        columns, rows = BORDERS[self.camera] if "black_borders" in self.traps else (0, 0)
        return columns, 0, SIZE[0], SIZE[1] - rows

    @cached_property
    def events(self) -> list[tuple[Event, int, int]]:
        """Event, first frame, end frame (exclusive), covering the clip without a gap."""
        rest, reach, stop = max(2, self.frames // 12), max(1, self.frames // 20), max(1, self.frames // 20)
        contact = np.linspace(rest + reach, self.frames - stop, len(CONTACT_EVENTS) + 1).astype(int).tolist()
        names: tuple[Event, ...] = ("rest", "Reachout", *CONTACT_EVENTS, "Stop")
        bounds = [0, rest, *contact, self.frames]
        return list(zip(names, bounds[:-1], bounds[1:], strict=True))

    def event(self, frame: int) -> Event:
        """The event that covers a frame."""
        return next(name for name, begin, end in self.events if begin <= frame < end)

    @cached_property
    def _painted(self) -> Painted:
        return paint_thing(self.thing, self.view)

    @cached_property
    def _still(self) -> np.ndarray:
        table = draw_table(self.view, self._scenery_rng)
        for painted in (*draw_clutter(self.seed, self.thing, self.view, self._scenery_rng, self.scene), self._painted):
            lay(table, painted)
        still = cv2.subtract(cv2.GaussianBlur(table, (3, 3), 0.8), self._grain)
        self._blacken(still)
        return still

    @cached_property
    def _grain(self) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([*self._stream, _NOISE_STREAM]))
        tosses = np.frombuffer(rng.bytes(SIZE[0] * SIZE[1]), np.uint8).reshape(SIZE[1], SIZE[0])
        return cv2.merge([np.bitwise_count(tosses & 15)] * 3)  # by how much a pixel is darker, four coins decide

    @property
    def clean(self) -> np.ndarray:
        """The picture without any hand, uint8 (1080, 1920, 3)."""
        return self._still

    @cached_property
    def background(self) -> np.ndarray:
        """What a frame shows before the grasping hand is laid on it: `clean`, and an unlabelled hand on the table."""
        if "unlabelled_left_hand" not in self.traps:
            return self._still
        rng = np.random.default_rng(np.random.SeedSequence([*self._stream, _LEFT_STREAM]))
        resting = draw_grasp(self.thing, self.view, SCALE, rng, side="left")
        aside = np.array([-rng.uniform(300, 380), rng.uniform(120, 200), 0])
        resting = replace(resting, joints=resting.joints + aside, under=frozenset())
        return self.draw(resting).rgb

    @cached_property
    def object_mask(self) -> np.ndarray:
        """All of the object, hidden or not, bool (1080, 1920)."""
        mask = self._laid((self._painted.cover > 0.5).view(np.uint8)).view(bool)
        self._blacken(mask)
        return mask

    def cover(self, part: HiddenBy, shrink: int = 1) -> np.ndarray:
        """Cover of the object, or of its handle alone, float32 (1080 / shrink, 1920 / shrink) in [0, 1]."""
        return self._laid(self._painted.cover if part == "object" else self._painted.handle, shrink)

    def _laid(self, layer: np.ndarray, shrink: int = 1) -> np.ndarray:
        """A layer of the painted object in the picture, whose cells are `shrink` pixels wide."""
        left, top = self._painted.left, self._painted.top
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + layer.shape[1], SIZE[0]), min(top + layer.shape[0], SIZE[1])
        edges = y0 % shrink, -y1 % shrink, x0 % shrink, -x1 % shrink
        layer = cv2.copyMakeBorder(layer[y0 - top : y1 - top, x0 - left : x1 - left], *edges, cv2.BORDER_CONSTANT)
        width, height = layer.shape[1] // shrink, layer.shape[0] // shrink
        row, column = y0 // shrink, x0 // shrink
        picture = np.zeros((SIZE[1] // shrink, SIZE[0] // shrink), layer.dtype)
        picture[row : row + height, column : column + width] = cv2.resize(
            layer, (width, height), interpolation=cv2.INTER_AREA
        )
        return picture

    @cached_property
    def _covers(self) -> dict[HiddenBy, np.ndarray]:
        return {"object": self.cover("object", COARSE), "handle": self.cover("handle", COARSE)}

    @cached_property
    def contact_frames(self) -> range:
        """Frames in which the hand is at the object."""
        spans = [(begin, end) for name, begin, end in self.events if name in CONTACT_EVENTS]
        return range(spans[0][0], spans[-1][1])

    def truth_rng(self) -> np.random.Generator:
        """A generator of the clip's own for draws that are in none of its frames."""
        return np.random.default_rng(np.random.SeedSequence([*self._stream, _TRUTH_STREAM]))

    def draw_grasp(self, rng: np.random.Generator) -> Grasp:
        """Draw a grasp of this clip's object from the rules: the true conditional distribution."""
        return draw_grasp(self.thing, self.view, SCALE, rng, side=self.side)

    def grasp(self, frame: int) -> Grasp | None:
        """The hand of a frame.

        None at rest; a draw of the frame's own in contact; before and after it, the first or last of these on a smooth
        way to or from the object.
        """
        event, contact = self.event(frame), self.contact_frames
        if event == "rest":
            return None
        nearest = min(max(frame, contact[0]), contact[-1])
        grasp = self.draw_grasp(np.random.default_rng(np.random.SeedSequence([*self._stream, nearest])))
        if frame == nearest:
            return grasp
        begin, end = next((begin, end) for name, begin, end in self.events if name == event)
        share = abs(frame - nearest) / (end - begin + 1)
        away = _AWAY * share * share * (3 - 2 * share)
        back = away * np.array([np.cos(grasp.forearm), np.sin(grasp.forearm), 0])
        return replace(grasp, joints=grasp.joints + back, under=frozenset())

    def frame(self, frame: int) -> Frame:
        """Draw one frame, in [0, frames)."""
        grasp = self.grasp(frame)
        return Frame(self.background) if grasp is None else self.draw(grasp, self.background)

    def draw(self, grasp: Grasp, background: np.ndarray | None = None, missing: frozenset[int] = frozenset()) -> Frame:
        """Draw a frame with a given hand.

        Args:
            grasp: the hand.
            background: uint8 (1080, 1920, 3), what it is laid on; `clean` by default.
            missing: digits that are left out, 0 thumb to 4 little finger.
        """
        below = self.clean if background is None else background
        arm = paint_arm(grasp, self.skin, self.view.light, missing)
        window, patch, visible = self._lay(below, arm, grasp)
        shown = visible > 127
        left, _, _, bottom = self.valid
        for picture in (patch, shown):  # the camera's border
            picture[:, : max(left - window[0], 0)] = 0
            picture[max(bottom - window[1], 0) :] = 0
        return Frame(below, window, patch, shown, grasp)

    def _lay(
        self, below: np.ndarray, arm: Arm, grasp: Grasp
    ) -> tuple[tuple[int, int, int, int], np.ndarray, np.ndarray]:
        """Lay a painted arm and its shadow on a picture.

        Returns:
            The window that changes, what it shows then, and the arm's visible share of its pixels, uint8, 0..255.
        """
        if grasp.under:
            self._hide(arm, grasp)
        x0, y0, x1, y1 = arm.window
        left, top = (max(edge - _REACH, 0) // _SOFT * _SOFT for edge in (x0, y0))
        right, bottom = (
            min(-(-(edge + _REACH) // _SOFT) * _SOFT, side) for edge, side in zip((x1, y1), LAYER, strict=True)
        )
        visible = np.zeros((bottom - top, right - left), np.float32)
        visible[y0 - top : y1 - top, x0 - left : x1 - left] = arm.alpha
        kept = _shadow(visible, self.view.light, lift=30 / COARSE)  # what is hidden throws none on what hides it
        kept *= 1 - visible
        left, top, right, bottom, x0, y0, x1, y1 = (
            COARSE * edge for edge in (left, top, right, bottom, x0, y0, x1, y1)
        )
        patch = below[top:bottom, left:right]
        patch = np.asarray(cv2.multiply(patch, cv2.merge([_enlarged(kept, 255)] * 3), scale=1 / 255))
        shown = cv2.subtract(_enlarged(cv2.merge([*arm.rgb])), self._grain[y0:y1, x0:x1])
        inner = patch[y0 - top : y1 - top, x0 - left : x1 - left]
        cv2.add(inner, shown, dst=inner)
        return (left, top, right, bottom), patch, _enlarged(visible, 255)

    def _hide(self, arm: Arm, grasp: Grasp) -> None:
        """Take away from a painted arm, in place, what of its `under` digits the object hides."""
        x0, y0, x1, y1 = arm.window
        hidden = arm.under * self._covers[grasp.hidden_by][y0:y1, x0:x1]
        hidden /= np.maximum(arm.alpha, 1e-3)
        shown = np.subtract(1, hidden, out=hidden)
        arm.alpha[:] *= shown
        arm.rgb[:] *= shown

    def _blacken(self, picture: np.ndarray) -> None:
        """Blacken the camera's border in place: HOI4D's released frames are shifted."""
        left, _, _, bottom = self.valid
        picture[:, :left] = 0
        picture[bottom:] = 0


def _enlarged(layer: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """An arm's layer (h, w, ...), times `scale`, as uint8 at the picture's size."""
    size = layer.shape[1] * COARSE, layer.shape[0] * COARSE
    return cv2.resize(cv2.convertScaleAbs(layer, alpha=scale), size, interpolation=cv2.INTER_LINEAR)


def _shadow(cover: np.ndarray, light: np.ndarray, lift: float) -> np.ndarray:
    """Light left on the table, (H, W) in [0, 1], under what covers it.

    Args:
        cover: (H, W) what casts the shadow, 0..1; multiples of _SOFT, so that its small copy has whole cells.
        light: (3,) unit vector towards the light.
        lift: height of what casts it, cells of `cover`.
    """
    height, width = cover.shape
    small = cv2.resize(cover, (width // _SOFT, height // _SOFT), interpolation=cv2.INTER_AREA)
    drift = -light[:2] / light[2] * lift / _SOFT
    wide = cv2.GaussianBlur(_shift(small, drift), (0, 0), lift / 6)
    tight = cv2.GaussianBlur(_shift(small, drift * 0.3), (0, 0), 0.8)
    return cv2.resize(np.maximum(1 - 0.46 * wide - 0.28 * tight, 0), (width, height), interpolation=cv2.INTER_LINEAR)


def _shift(picture: np.ndarray, by: np.ndarray) -> np.ndarray:
    move = np.array([[1, 0, by[0]], [0, 1, by[1]]], np.float32)
    return cv2.warpAffine(picture, move, picture.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
