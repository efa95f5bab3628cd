"""One clip of the mini world: a table, an object lying still, and a fresh hand in every frame."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np

from data_prep.mini.affordance import Grasp, draw_grasp
from data_prep.mini.arm import Skin, draw_skin, paint_arm
from data_prep.mini.limbs import HandPainter
from data_prep.mini.objects import CATEGORIES, INSTANCES, Thing, draw_thing, paint_thing
from data_prep.mini.table import SIZE, draw_table

Event = Literal["rest", "Reachout", "Grasp", "Pickup", "carry", "putdown", "Stop"]

CONTACT_EVENTS: tuple[Event, ...] = ("Grasp", "Pickup", "carry", "putdown")
BORDERS = {1: (0, 0), 2: (15, 3), 3: (15, 30), 4: (15, 3)}  # camera: black columns left, black rows at the bottom
MAX_CLIPS = 28_800  # beyond it sequence names would repeat
MIN_FRAMES = 8
_COARSE = 4  # shadows are drawn at this fraction of the size
_REACH = 64  # pixels by which a shadow leaves the hand's window


@dataclass(frozen=True)
class Frame:
    """One drawn frame.

    Attributes:
        rgb: uint8 (1080, 1920, 3).
        window: x0, y0, x1, y1 of the part of the picture that holds the hand; None without a hand.
        hand: bool, hand, forearm and sleeve within the window; None without a hand.
        grasp: how the hand was drawn; None without a hand.
    """

    rgb: np.ndarray
    window: tuple[int, int, int, int] | None = None
    hand: np.ndarray | None = None
    grasp: Grasp | None = None

    @property
    def keypoints(self) -> np.ndarray | None:
        """(21, 2) pixels in manopth's joint order."""
        return None if self.grasp is None else self.grasp.joints[:, :2]

    @property
    def hand_mask(self) -> np.ndarray:
        """Hand, forearm and sleeve, bool (1080, 1920)."""
        mask = np.zeros((SIZE[1], SIZE[0]), bool)
        if self.window is not None:
            x0, y0, x1, y1 = self.window
            mask[y0:y1, x0:x1] = self.hand
        return mask


class Clip:
    """One sequence; everything in it follows from (seed, index)."""

    def __init__(self, seed: int, index: int, frames: int) -> None:
        """Draw the clip's set-up; pictures are drawn when they are asked for.

        Args:
            seed: the world's seed, ≥ 0.
            index: the clip's number, in [0, MAX_CLIPS).
            frames: number of frames, ≥ MIN_FRAMES.
        """
        self.seed, self.index, self.frames = seed, index, frames
        rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
        self.category = list(CATEGORIES)[index % len(CATEGORIES)]
        self.instance = 1 + (index // len(CATEGORIES)) % INSTANCES
        self.camera = int(rng.integers(1, 5))
        self.task = int(rng.integers(1, 3))
        azimuth = rng.uniform(0, 2 * np.pi)
        slant = np.radians(rng.uniform(30, 48))
        light = [np.sin(slant) * np.cos(azimuth), np.sin(slant) * np.sin(azimuth), np.cos(slant)]
        self.light = np.array(light, np.float32)
        self.tint = (rng.uniform(0.9, 1.06) * (1 + rng.normal(0, 0.016, 3))).astype(np.float32)
        self.thing: Thing = draw_thing(seed, self.category, self.instance, rng)
        self.skin: Skin = draw_skin(rng, self.tint)
        self.scale = float(rng.uniform(1.32, 1.5))  # pixels per millimetre
        self._table_rng = rng

    @property
    def sequence(self) -> str:
        """HOI4D's seven-level path."""
        room, layout = 1 + self.index * 37 % 384, 1 + self.index // 384 % 5
        c, n = f"C{self.category}", f"N{self.instance:02d}"
        return f"ZY2021080000{self.camera}/H{self.camera}/{c}/{n}/S{room}/s{layout:02d}/T{self.task}"

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
    def _still(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture without a hand, uint8 RGB, and the object's mask, bool."""
        table = draw_table(self.light, self._table_rng, self.tint)
        canvas, left, top = paint_thing(self.thing, self.light)
        side = canvas.alpha.shape[0]
        view = np.s_[top : top + side, left : left + side]
        table[view] *= _shadow(canvas.alpha, self.light, lift=16.0)[..., None]
        table[view] += canvas.alpha[..., None] * (canvas.rgb * self.tint - table[view])
        table[view] = cv2.GaussianBlur(table[view], (0, 0), 0.8)
        still = cv2.add(table, self._noise, dtype=cv2.CV_8U)
        blacken(still, self.camera)
        cover = np.zeros((SIZE[1], SIZE[0]), np.float32)
        cover[view] = canvas.alpha
        mask = cover > 0.5
        blacken(mask, self.camera)
        return still, mask

    @cached_property
    def _noise(self) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.index, 1_000_000]))
        quarter = rng.normal(0, 1.6, (SIZE[1] // 2, SIZE[0] // 2)).astype(np.float32)
        return cv2.merge([np.tile(quarter, (2, 2))] * 3)

    @property
    def clean(self) -> np.ndarray:
        """The picture without any hand, uint8 (1080, 1920, 3)."""
        return self._still[0]

    @property
    def object_mask(self) -> np.ndarray:
        """All of the object, hidden or not, bool (1080, 1920)."""
        return self._still[1]

    def grasp(self, frame: int) -> Grasp | None:
        """The hand of a frame: none at rest, away from the object in Reachout and Stop, else a fresh draw."""
        event = self.event(frame)
        if event == "rest":
            return None
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.index, frame]))
        away = 0.0 if event in CONTACT_EVENTS else rng.uniform(190, 280)
        return draw_grasp(self.thing, self.scale, rng, away)

    def frame(self, frame: int) -> Frame:
        """Draw one frame, in [0, frames)."""
        rgb = self.clean.copy()
        grasp = self.grasp(frame)
        if grasp is None:
            return Frame(rgb)
        arm = paint_arm(grasp.grip, grasp.joints, grasp.forearm, grasp.scale, self.skin, self.light, SIZE)
        self._lay(rgb, arm)
        blacken(rgb, self.camera)
        x0, y0, x1, y1 = arm.window
        visible = np.zeros((SIZE[1], SIZE[0]), bool)
        visible[y0:y1, x0:x1] = arm.alpha > 0.5
        blacken(visible, self.camera)
        return Frame(rgb, arm.window, visible[y0:y1, x0:x1], grasp)

    def _lay(self, rgb: np.ndarray, arm: HandPainter) -> None:
        """Lay a painted arm and its shadow into a picture, in place."""
        x0, y0, x1, y1 = arm.window
        left, top, right, bottom = max(x0 - _REACH, 0), max(y0 - _REACH, 0), x1 + _REACH, y1 + _REACH
        patch = rgb[top:bottom, left:right]
        cover = np.zeros(patch.shape[:2], np.float32)
        inner = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        cover[inner] = arm.alpha
        through = _shadow(cover, self.light, lift=30.0) * (1 - cover)
        kept = cv2.convertScaleAbs(through, alpha=255)
        cv2.multiply(patch, cv2.merge([kept] * 3), dst=patch, scale=1 / 255)
        seen = (arm.alpha > 0).view(np.uint8)
        shown = cv2.add(arm.rgb, self._noise[y0:y1, x0:x1], mask=seen, dtype=cv2.CV_8U)
        cv2.add(patch[inner], shown, dst=patch[inner])


def blacken(picture: np.ndarray, camera: int) -> None:
    """Blacken a camera's border in place: HOI4D's released frames are shifted."""
    columns, rows = BORDERS[camera]
    picture[:, :columns] = 0
    picture[SIZE[1] - rows :] = 0


def _shadow(cover: np.ndarray, light: np.ndarray, lift: float) -> np.ndarray:
    """Light left on the table, (H, W) in [0, 1], under what covers it.

    Args:
        cover: (H, W) what casts the shadow, 0..1.
        light: (3,) unit vector towards the light.
        lift: height of what casts it, pixels.
    """
    height, width = cover.shape
    small = cv2.resize(cover, (max(width // _COARSE, 1), max(height // _COARSE, 1)), interpolation=cv2.INTER_AREA)
    drift = -light[:2] / light[2] * lift / _COARSE
    wide = cv2.GaussianBlur(_shift(small, drift), (0, 0), lift / 6)
    tight = cv2.GaussianBlur(_shift(small, drift * 0.3), (0, 0), 1.6)
    return cv2.resize(np.maximum(1 - 0.46 * wide - 0.28 * tight, 0), (width, height), interpolation=cv2.INTER_LINEAR)


def _shift(picture: np.ndarray, by: np.ndarray) -> np.ndarray:
    move = np.array([[1, 0, by[0]], [0, 1, by[1]]], np.float32)
    return cv2.warpAffine(picture, move, picture.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
