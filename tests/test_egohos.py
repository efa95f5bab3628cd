"""EgoHOS: another reader behind the same protocol."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.pairing import PairSettings, make_pairs, plan_clip
from data_prep.remove_hand import OpenCVRemover
from data_prep.sources import Drop, open_source
from hoi_lightning.errors import InputError

SIZE = (180, 320)


def labels_of(left: int | None, right: int | None) -> np.ndarray:
    """Hands from below at x = 80 and 240, each on a block of the given label, or without one."""
    labels = np.zeros(SIZE, np.uint8)
    for hand, held, x in ((1, left, 80), (2, right, 240)):
        if held is not None:
            labels[60:100, x - 30 : x + 30] = held
        labels[110:180, x - 10 : x + 10] = hand  # further from the block than pixels alone would call contact
    return labels


def draw(root: Path, name: str, labels: np.ndarray) -> None:
    folder, stem = name.split("/")
    for kind in ("image", "label"):
        (root / folder / kind).mkdir(parents=True, exist_ok=True)
    palette = np.linspace(20, 230, 27).astype(np.uint8).reshape(9, 3)
    picture = cv2.GaussianBlur(palette[np.minimum(labels, 8)], (0, 0), 1)
    Image.fromarray(picture).save(root / folder / "image" / f"{stem}.jpg")
    Image.fromarray(labels).save(root / folder / "label" / f"{stem}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw(tmp_path, "train/ego4d_a.b_0007", labels_of(None, 4))
    draw(tmp_path, "train/ego4d_a.b_0011", labels_of(3, None))
    draw(tmp_path, "train/epic_1", labels_of(5, 5))
    draw(tmp_path, "val/epic_1", labels_of(6, 8))  # objects that no hand touches itself
    draw(tmp_path, "val/epic_2", labels_of(None, 4))
    draw(tmp_path, "val/epic_3", labels_of(None, 4) * 30)
    (tmp_path / "val/image/epic_2.jpg").write_bytes(b"no picture")
    draw(tmp_path, "test_outdomain/lone", labels_of(None, 4))
    (tmp_path / "test_outdomain/label/lone.png").unlink()
    return tmp_path


def outcomes(root: Path) -> tuple[dict, dict]:
    samples, drops = {}, {}
    clips, left_out = open_source(root, "egohos").find()
    for drop in left_out:
        drops[drop.path] = drop.reason
    settings = PairSettings(64)
    for clip in clips:
        plan = plan_clip(clip, settings)
        for outcome in [*plan.drops, *make_pairs(clip, plan.pairs, settings, OpenCVRemover())]:
            if isinstance(outcome, Drop):
                drops[outcome.path] = outcome.reason
            else:
                samples[outcome[0].info.key] = outcome[0]
    return samples, drops


def test_every_picture_is_a_pair_or_in_the_ledger(root):
    samples, drops = outcomes(root)
    sides = {key: (sample.info.hand_side, sample.info.instance) for key, sample in samples.items()}
    assert sides == {
        "train_ego4d_a_b_f00007": ("right", "ego4d_a_b"),
        "train_ego4d_a_b_f00011": ("left", "ego4d_a_b"),
        "train_epic_f00001": ("right", "epic"),
    }
    assert drops == {
        "val/label/epic_1.png": "no-touch",
        "val/image/epic_2.jpg": "bad-picture",
        "val/label/epic_3.png": "bad-mask",
        "test_outdomain/label/lone.png": "no-mask",
    }


def test_pairs_have_what_the_contract_asks(root):
    for key, sample in outcomes(root)[0].items():
        info = sample.info
        assert "." not in key
        assert (info.category, info.event, info.keypoints) == ("Object", "", None)
        assert sample.hoi.shape == sample.obj.shape == (64, 64, 3)
        assert sample.hand.any()
        assert sample.object.any()
        x0, y0, x1, y1 = info.crop
        assert x1 - x0 == y1 - y0 == (SIZE[0] if "epic" in key else round(2.6 * 60))  # both hold one of these
        assert info.layout.b2 > 0.7  # the forearm comes from below
        hole = abs(sample.hoi.astype(int) - sample.obj).sum(2) > 0
        assert not hole[~cv2.dilate(sample.hand.view(np.uint8), np.ones((31, 31))).view(bool)].any()


def test_pictures_of_one_number_are_never_lost(root):
    draw(root, "train/epic_01", labels_of(None, 4))
    _, left_out = open_source(root, "egohos").find()
    assert [(drop.reason, drop.path) for drop in left_out] == [("same-frame", "train/image/epic_1.jpg")]


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(InputError, match="EgoHOS"):
        open_source(tmp_path, "egohos").find()
