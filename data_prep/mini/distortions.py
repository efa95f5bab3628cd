"""Pictures whose distortion is known: what a figure of merit must see, and see more of as it grows."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from data_prep.hoi4d import Box, bounding_box
from data_prep.mini.world import MIN_FRAMES, Clip
from data_prep.pairing import crop_around

if TYPE_CHECKING:
    from data_prep.mini.affordance import Grasp

LEVELS = range(1, 6)
BLUR = (0.7, 1.0, 1.4, 2.0, 2.8)  # standard deviation in pixels of a 128-pixel picture
NOISE = (5.0, 10.0, 17.0, 27.0, 40.0)  # standard deviation, of 255
HUE = (10.0, 22.0, 38.0, 60.0, 90.0)  # degrees
STEP = 0.06  # of the crop's side, by which each level moves a hand back along its forearm


def write_distortions(out: Path, seed: int, pictures: int = 200, side: int = 128) -> None:
    """Draw `reference/`, `clean/` and `KIND-LEVEL/` under `out/distortions`, each with NNN.png.

    Each clip gives one hand to `clean` and all KIND-LEVEL, and another, of the same object and table, to `reference`:
    as with pictures that are sampled for recorded objects, the sets differ by their hands alone. Kinds: blur, noise and
    hue_shift of the picture, hand_removal (level x 20 % of the pictures show no hand), hand_displacement (level x 6 %
    of the side, back along the forearm), finger_deletion (level digits are missing).

    Args:
        out: folder, made if absent.
        seed: of the world.
        pictures: in each folder.
        side: of the pictures, in pixels.
    """
    from tqdm import tqdm

    rng = np.random.default_rng(np.random.SeedSequence([seed, 2_000_000]))
    ranks = rng.permutation(pictures)  # a picture that has lost its hand stays without it at the higher levels
    for i in tqdm(range(pictures), unit="clip", desc="distortions"):
        clip = Clip(seed, i, MIN_FRAMES)
        other, scene = (_Scene(clip, frame, side) for frame in clip.contact_frames[:2])
        clean, empty = scene.shot(scene.grasp), scene.shot(None)
        drawn = {"reference": other.shot(other.grasp), "clean": clean} | damaged(clean, rng) | scene.altered(rng)
        for level in LEVELS:
            drawn[f"hand_removal-{level}"] = empty if ranks[i] < level / LEVELS[-1] * pictures else clean
        for name, picture in drawn.items():
            _write(out / "distortions" / name / f"{i:03d}.png", picture)


def damaged(picture: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Blurred, noisy and recoloured copies of a picture, uint8 RGB (S, S, 3), by KIND-LEVEL."""
    copies = {}
    noise = rng.standard_normal(picture.shape)
    for level in LEVELS:
        copies[f"blur-{level}"] = cv2.GaussianBlur(picture, (0, 0), BLUR[level - 1] * len(picture) / 128)
        noisy = picture + NOISE[level - 1] * noise
        copies[f"noise-{level}"] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        copies[f"hue_shift-{level}"] = _turn_hue(picture, HUE[level - 1])
    return copies


class _Scene:
    """A hand at an object, seen through the crop that pairing would choose."""

    def __init__(self, clip: Clip, frame: int, side: int) -> None:
        grasp = clip.grasp(frame)
        assert grasp is not None
        self.clip, self.grasp, self.side = clip, grasp, side
        box = bounding_box(clip.object_mask)
        assert box is not None
        self.crop: Box = crop_around(box, clip.valid)

    def shot(self, grasp: "Grasp | None", missing: frozenset[int] = frozenset()) -> np.ndarray:
        """The crop with that hand, uint8 RGB (side, side, 3)."""
        rgb = self.clip.clean if grasp is None else self.clip.draw(grasp, missing=missing).rgb
        x0, y0, x1, y1 = self.crop
        return cv2.resize(rgb[y0:y1, x0:x1], (self.side, self.side), interpolation=cv2.INTER_AREA)

    def altered(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Pictures with the hand moved away and with digits missing, by KIND-LEVEL."""
        back = np.array([np.cos(self.grasp.forearm), np.sin(self.grasp.forearm), 0])
        step = STEP * (self.crop[2] - self.crop[0]) * back
        digits = rng.permutation(5).tolist()
        pictures = {}
        for level in LEVELS:
            moved = replace(self.grasp, joints=self.grasp.joints + level * step)
            pictures[f"hand_displacement-{level}"] = self.shot(moved)
            pictures[f"finger_deletion-{level}"] = self.shot(self.grasp, frozenset(digits[:level]))
        return pictures


def _turn_hue(picture: np.ndarray, degrees: float) -> np.ndarray:
    """Turn the colours of an RGB picture about the grey axis; brightness is kept."""
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = lab[..., 1].copy(), lab[..., 2].copy()
    lab[..., 1], lab[..., 2] = cos * a - sin * b, sin * a + cos * b
    return np.rint(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)


def _write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
