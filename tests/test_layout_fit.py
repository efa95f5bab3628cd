"""Fitted layouts against the mini world, where the definition's own layout is known."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch

from data_prep.labels import LabelMap
from data_prep.layout_fit import fit_crop_layout, on_hand, whole_hand
from data_prep.mini.truth import clip_crop, layouts_of
from data_prep.mini.world import Clip
from data_prep.resize import resize_window
from hoi_lightning.hand_proxy import Layout

NUM_CLIPS, FRAMES_EACH = 12, 4  # every category twice


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the build's worker processes fit: starting threads takes longer than the fit."""
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])


@pytest.fixture(scope="module")
def hands() -> list[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int, int, int], np.ndarray]]:
    """Of drawn hands: mask in the crop, mask in the frame, keypoints, crop and true layout."""
    return list(draw_hands())


def draw_hands() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int, int, int], np.ndarray]]:
    for index in range(NUM_CLIPS):
        clip = Clip(3, index, 24)
        crop = clip_crop(clip)
        for frame in clip.contact_frames[:: len(clip.contact_frames) // FRAMES_EACH][:FRAMES_EACH]:
            drawn = clip.frame(frame)
            mask, keypoints = drawn.hand_mask, drawn.keypoints
            assert keypoints is not None
            centroid = np.argwhere(mask)[:, ::-1].mean(0)
            truth = layouts_of(keypoints[None], centroid[None], crop)[0]
            shown = resize_window(mask.view(np.uint8), crop, 256).view(bool)
            yield shown, whole_hand(LabelMap.whole(mask.view(np.uint8)), 1), keypoints, crop, truth


@pytest.mark.parametrize(("with_keypoints", "limits"), [(True, (0.02, 0.05, 5.0)), (False, (0.03, 0.12, 8.0))])
def test_fitted_layouts_are_near_the_truth(hands, with_keypoints, limits):
    errors = []
    for shown, whole, keypoints, crop, truth in hands:
        layout, iou = fit_crop_layout(shown, whole, keypoints if with_keypoints else None, crop)
        a, x, y, b1, b2 = truth.tolist()
        turn = np.degrees(np.arctan2(layout.b2 * b1 - layout.b1 * b2, layout.b1 * b1 + layout.b2 * b2))
        errors.append((np.hypot(layout.x - x, layout.y - y) / 2, abs(layout.a / a - 1), abs(turn)))
        assert 0 < iou <= 1
    medians = np.median(errors, axis=0)
    assert (medians <= limits).all(), f"centre {medians[0]:.3f} of the side, a {medians[1]:.3f}, angle {medians[2]:.1f}"


def test_a_layout_follows_its_crop(hands):
    """The same hand in two windows: the same place of the frame, the same size there, the same direction."""
    _, whole, keypoints, crop, _ = hands[0]
    wider = (crop[0] - 40, crop[1] - 60, crop[2] + 120, crop[3] + 100)

    def in_frame(layout: Layout, window: tuple[int, int, int, int]) -> np.ndarray:
        half = (window[2] - window[0]) / 2
        place = half * (np.array([layout.x, layout.y]) + 1) + window[:2]
        return np.array([*place, layout.r * half, 100 * layout.b1, 100 * layout.b2])

    shown = np.ones((64, 64), bool)
    found = [in_frame(fit_crop_layout(shown, whole, keypoints, box)[0], box) for box in (crop, wider)]
    np.testing.assert_allclose(*found, atol=0.05)
    low, high = keypoints.min(0), keypoints.max(0)
    np.testing.assert_allclose(found[0][:2], (low + high) / 2 + 0.5, atol=0.05)


def test_keypoints_off_the_hand_are_told(hands):
    _, whole, keypoints, _, _ = hands[0]
    assert on_hand(keypoints, whole)
    assert not on_hand(keypoints + 5000, whole)
    assert not on_hand(keypoints - 5000, whole)


@pytest.mark.parametrize("shape", [(1080, 1920), (1080, 1440), (63, 41)])
def test_a_whole_hand_keeps_its_place(shape):
    mask = np.zeros(shape, bool)
    mask[shape[0] // 2 :, shape[1] // 3 : shape[1] // 2] = True
    whole = whole_hand(LabelMap.whole(mask.view(np.uint8)), 1)
    assert whole.shape[0] == whole.shape[1] == -(-max(shape) // 4)
    centre = (np.argwhere(whole).mean(0) + 0.5) * 4
    np.testing.assert_allclose(centre, np.argwhere(mask).mean(0) + 0.5, atol=2)
