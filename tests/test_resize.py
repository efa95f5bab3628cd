"""Crops: the mean of what lies below each pixel, and of a frame only what is asked for."""

import io

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.encode import encode, encode_jpeg
from data_prep.hoi4d.video import decode_video, read_window
from data_prep.resize import resize, resize_window
from hoi_lightning.data import sample as treaty
from tests import hoi4d_tree, tiny


def textured(side: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.0) // 2 + noise // 2


def means(picture: np.ndarray, size: int) -> np.ndarray:
    """Exact means of the areas, (size, size, 3)."""
    side = len(picture)
    edges = np.linspace(0, side, size + 1)
    low, high, pixels = edges[:-1, None], edges[1:, None], np.arange(side)
    weights = (np.minimum(high, pixels + 1) - np.maximum(low, pixels)).clip(0) * size / side
    return np.einsum("ij,jkc,lk->ilc", weights, picture.astype(float), weights, optimize=True)


def psnr(picture: np.ndarray, source: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(picture - source).mean()))


@pytest.mark.parametrize(("side", "size"), [(577, 512), (300, 128), (1080, 64), (131, 64)])
def test_a_smaller_picture_is_the_mean_of_the_areas(side, size):
    picture = textured(side)
    exact = means(picture, size)
    small = resize(picture, size)
    assert np.abs(small - exact).max() < 0.7  # rounding alone makes 0.5
    assert psnr(small, exact) > psnr(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), exact) - 0.05


def test_labels_keep_their_values():
    labels = np.random.default_rng(0).integers(0, 10, (200, 200), np.uint8) * 25
    assert set(np.unique(resize_window(labels, (20, 30, 170, 180), 64))) <= set(np.unique(labels))


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> av.VideoFrame:
    path = tmp_path_factory.mktemp("video") / "v" / "image.mp4"
    hoi4d_tree.write_video(path, [np.ascontiguousarray(np.tile(textured(480), (3, 4, 1))[:1080])])
    return next(decode_video(path))


@pytest.mark.parametrize("kind", ["yuv420p", "tagged", "yuv444p"])
def test_a_window_is_the_whole_frame_converted_and_cut(frame, kind):
    if kind == "tagged":
        frame.colorspace, frame.color_range = av.video.reformatter.Colorspace.ITU709, 1
    elif kind != "yuv420p":
        frame = frame.reformat(format=kind, threads=1)
    whole = frame.to_ndarray(format="rgb24", threads=1)
    random = np.random.default_rng(2)
    boxes = [(0, 0, 1080, 1080), (840, 0, 1920, 1080), (1861, 1021, 1920, 1080)]
    for _ in range(6):
        side = int(random.integers(40, 700))
        x, y = int(random.integers(0, 1920 - side)), int(random.integers(0, 1080 - side))
        boxes.append((x, y, x + side, y + side))
    for box in boxes:
        np.testing.assert_array_equal(read_window(frame, box, 96), resize_window(whole, box, 96))
        side = box[2] - box[0]
        np.testing.assert_array_equal(read_window(frame, box, side), whole[box[1] : box[3], box[0] : box[2]])


def test_faster_encoders_write_what_the_treaty_asks():
    given = tiny.sample(1, 96)
    fast, plain = encode(given), treaty.encode(given)
    assert list(fast) == list(plain)
    assert fast["json"] == plain["json"]
    read = treaty.decode({name: data for name, data in fast.items() if name != "__key__"})
    for field in ("hand", "object"):
        np.testing.assert_array_equal(getattr(read, field), getattr(given, field))
    picture = textured(160)
    with (
        Image.open(io.BytesIO(encode_jpeg(picture))) as ours,
        Image.open(io.BytesIO(treaty.encode_jpeg(picture))) as his,
    ):
        assert ours.quantization == his.quantization
        assert [layer[1:3] for layer in ours.layer] == [layer[1:3] for layer in his.layer] == [(2, 2), (1, 1), (1, 1)]
        assert psnr(np.asarray(ours), picture) > psnr(np.asarray(his), picture) - 0.01
