"""The truth of a clip: its picture without a hand, and where hands go, drawn from the rules themselves."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data_prep.hoi4d import Box, Sequence, bounding_box
from data_prep.mini.affordance import RULES, Grasp
from data_prep.mini.objects import CATEGORIES
from data_prep.mini.silhouette import silhouette
from data_prep.mini.view import SIZE
from data_prep.mini.world import Clip
from data_prep.pairing import crop_around

DRAWS = 1024
_SHRINK = 8  # source pixels to one of the silhouettes that stand in for painted hands
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]  # fastest by measure


@dataclass(frozen=True, eq=False)
class Truth:
    """What a clip's pairs have in common, and no network is told.

    Attributes:
        crop: square window in source pixels, the one of the clip's pairs.
        clean: uint8 (S, S, 3), the window without any hand, at source resolution.
        layouts: float32 (N, 5), independent draws from the rules, (a, x, y, b1, b2) in the window's NDC.
        rules: the rule of each.
        shares: each rule's probability.
    """

    crop: Box
    clean: np.ndarray
    layouts: np.ndarray
    rules: list[str]
    shares: dict[str, float]


def draw_truth(clip: Clip, draws: int = DRAWS) -> Truth:
    """Draw a clip's truth with a generator of its own: none of its frames is among the draws.

    Args:
        clip: the clip.
        draws: number of layouts.
    """
    crop = clip_crop(clip)
    painter = Silhouettes(clip)
    rng = clip.truth_rng()
    grasps = [clip.draw_grasp(rng) for _ in range(draws)]
    keypoints = np.array([grasp.joints[:, :2] for grasp in grasps])
    centroids = np.array([painter.centroid(grasp) for grasp in grasps])
    x0, y0, x1, y1 = crop
    return Truth(
        crop=crop,
        clean=clip.clean[y0:y1, x0:x1],
        layouts=layouts_of(keypoints, centroids, crop),
        rules=[grasp.rule for grasp in grasps],
        shares={rule.name: rule.share for rule in RULES[CATEGORIES[clip.category]]},
    )


def layouts_of(keypoints: np.ndarray, centroids: np.ndarray, crop: Box) -> np.ndarray:
    """Layouts by their definition, for many hands at once.

    Args:
        keypoints: (N, 21, 2) in source pixels, pixel centres at integers.
        centroids: (N, 2) of each hand's visible pixels, likewise.
        crop: square window in source pixels.

    Returns:
        float32 (N, 5) in the window's NDC.
    """
    half = (crop[2] - crop[0]) / 2
    low, high = keypoints.min(1), keypoints.max(1)
    centre, extent = (low + high) / 2, (high - low).max(1)
    to_forearm = centroids - centre
    b = to_forearm / np.linalg.norm(to_forearm, axis=1, keepdims=True)
    place = (centre + 0.5 - crop[:2]) / half - 1
    return np.column_stack([np.sqrt(extent / half), place, b]).astype(np.float32)


def clip_crop(clip: Clip) -> Box:
    """The window of a clip's pairs: the one about the whole object, as the build chooses it."""
    valid = Sequence(Path(), clip.sequence).valid
    seen = np.zeros_like(clip.object_mask)
    inside = np.s_[valid[1] : valid[3], valid[0] : valid[2]]
    seen[inside] = clip.object_mask[inside]
    box = bounding_box(seen)
    assert box is not None  # objects lie about the middle of the picture
    return crop_around(box, valid)


def truth_paths(out: Path, sequence: str) -> dict[str, Path]:
    """A clip's three files by the extensions that they have in a truth tar, too."""
    key = sequence.replace("/", "_")
    return {end: out / "truth" / f"{key}.{end}" for end in ("clean.png", "layouts.npy", "rules.json")}


def write_truth(out: Path, clip: Clip) -> None:
    """Write a clip's truth below OUT/truth."""
    truth = draw_truth(clip)
    paths = truth_paths(out, clip.sequence)
    (out / "truth").mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(paths["clean.png"]), cv2.cvtColor(truth.clean, cv2.COLOR_RGB2BGR), _PNG):
        raise OSError(f"cannot write {paths['clean.png']}")
    np.save(paths["layouts.npy"], truth.layouts)
    record = {
        "crop": truth.crop,
        "category": CATEGORIES[clip.category],
        "instance": f"N{clip.instance:02d}",
        "scene": clip.scene,
        "split": clip.split,
        "rules": truth.shares,
        "rule": truth.rules,
    }
    paths["rules.json"].write_text(json.dumps(record) + "\n", encoding="utf-8")


class Silhouettes:
    """Where the visible pixels of a clip's hands lie, without painting them.

    Args:
        clip: the clip, whose object hides what is under it and whose camera shows nothing outside `valid`.
    """

    def __init__(self, clip: Clip) -> None:
        self.skin = clip.skin
        size = (SIZE[0] // _SHRINK, SIZE[1] // _SHRINK)
        self.shows = {part: (clip.cover(part, _SHRINK) < 0.5).view(np.uint8) for part in ("object", "handle")}
        x0, y0, x1, y1 = Sequence(Path(), clip.sequence).valid
        columns, rows = ((np.arange(length) + 0.5) * _SHRINK - 0.5 for length in size)
        # float32: OpenCV's reductions below are
        self.columns = columns.astype(np.float32), ((columns >= x0) & (columns < x1)).astype(np.float32)
        self.rows = rows.astype(np.float32), ((rows >= y0) & (rows < y1)).astype(np.float32)

    def centroid(self, grasp: Grasp) -> tuple[float, float]:
        """Centroid of a hand's visible pixels in source pixels, pixel centres at integers."""
        front, under = silhouette(grasp, self.skin, _SHRINK)
        seen = front.view(np.uint8)
        if grasp.under:
            seen = seen | (under.view(np.uint8) & self.shows[grasp.hidden_by])
        (x, in_x), (y, in_y) = self.columns, self.rows
        inside = seen.astype(np.float32)
        by_column = in_x * (in_y @ inside)
        by_row = in_y * (inside @ in_x)
        total = by_column.sum()
        return by_column @ x / total, by_row @ y / total
