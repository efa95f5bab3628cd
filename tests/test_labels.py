"""Label maps that hold a part of their frame answer as whole frames would."""

import cv2
import numpy as np
import pytest

from data_prep.hoi4d import PALETTE, read_labels
from data_prep.labels import REACH, LabelMap, among, bounding_box, touched_by_reach
from data_prep.layout_fit import whole_hand
from data_prep.pairing import MAX_HOLE_AREA, _hides_too_much
from data_prep.references import STILL_IOU, Reference
from data_prep.remove_hand import dilate, hole_around
from data_prep.sources import Fault

FRAME = (320, 200)  # width, height
HANDS = {"right": 2, "left": 6}
OBJECTS = [(1, 3), (4,)]


def blobs(seed: int, labels: tuple[int, ...] = (1, 2, 3, 4, 6)) -> np.ndarray:
    """A few boxes of labels, uint8 (200, 320)."""
    random = np.random.default_rng(seed)
    whole = np.zeros(FRAME[::-1], np.uint8)
    for label in random.permutation(labels)[: random.integers(1, len(labels) + 1)]:
        x, y = random.integers(30, 200), random.integers(30, 120)
        width, height = random.integers(5, 70, 2)
        whole[y : y + height, x : x + width] = label
    return whole


def part(whole: np.ndarray) -> LabelMap:
    """What a reader keeps of it."""
    x0, y0, x1, y1 = bounding_box(whole) or (0, 0, 8, 8)
    x0, y0 = x0 // 8 * 8, y0 // 8 * 8
    return LabelMap(whole[y0:y1, x0:x1], (x0, y0), FRAME)


@pytest.mark.parametrize("seed", range(8))
def test_a_part_answers_as_the_whole(seed):
    whole, random = blobs(seed), np.random.default_rng(seed)
    labels = part(whole)
    around = np.pad(whole, 100)
    for _ in range(50):
        x0, y0 = random.integers(-90, FRAME[0]), random.integers(-90, FRAME[1])
        x1, y1 = x0 + random.integers(1, 90), y0 + random.integers(1, 90)
        shown = labels.at((x0, y0, x1, y1))
        np.testing.assert_array_equal(shown, around[y0 + 100 : y1 + 100, x0 + 100 : x1 + 100])
    for chosen in ((1,), (1, 3), (2, 6), (9,)):
        np.testing.assert_array_equal(among(whole, chosen), np.isin(whole, chosen))
        assert labels.box(chosen) == bounding_box(np.isin(whole, chosen))
    for label in (2, 6):
        np.testing.assert_array_equal(whole_hand(labels, label), whole_hand(LabelMap.whole(whole), label))
    assert touched_by_reach(labels.values, HANDS, OBJECTS) == touched_by_reach(whole, HANDS, OBJECTS)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_touched_lies_within_reach(seed):
    whole = blobs(seed)
    expected = None
    for side, hand in HANDS.items():
        near = cv2.dilate((whole == hand).astype(np.uint8), np.ones((2 * REACH + 1,) * 2)) > 0
        counts = [np.count_nonzero(near & np.isin(whole, group)) for group in OBJECTS]
        if expected is None and max(counts):
            expected = side, OBJECTS[int(np.argmax(counts))]
    assert touched_by_reach(whole, HANDS, OBJECTS) == expected


@pytest.mark.parametrize("seed", range(20))
def test_an_object_stands_still_where_its_visible_pixels_agree(seed):
    random = np.random.default_rng(seed)
    then = np.zeros(FRAME[::-1], np.uint8)
    then[60:120, 80:180] = 1
    now = np.roll(then, random.integers(-12, 13), 1)
    x, y = random.integers(60, 160), random.integers(40, 110)
    now[y : y + 60, x : x + 50] = 2
    seen = cv2.dilate((now == 2).astype(np.uint8), np.ones((9, 9))) == 0
    both, either = ((now == 1) & (then == 1) & seen).sum(), (((now == 1) | (then == 1)) & seen).sum()
    still = either > 0.1 * (then == 1).sum() and both >= STILL_IOU * either
    found = Reference(0, part(then)).shows_still(part(now), (1,), (2,))
    assert found == ((80, 60, 180, 120) if still else None)


def test_a_region_grows_as_in_the_whole_picture():
    random = np.random.default_rng(0)
    for radius in (1, 4, 11):
        region = cv2.GaussianBlur(random.random((90, 120)), (0, 0), 5) > 0.53
        for shown in (region, region & (np.arange(120) > 100), np.zeros_like(region)):
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
            expected = cv2.dilate(shown.view(np.uint8), kernel).view(bool)
            np.testing.assert_array_equal(dilate(shown, radius), expected)


def test_a_hand_hides_too_much_where_its_hole_does():
    found = set()
    for share in np.linspace(0.6, 1, 60):
        hand = np.zeros((128, 128), bool)
        hand[:, : round(128 * share)] = True
        hand[:, :6] = False
        found.add(answer := _hides_too_much(hand, 400))
        assert answer == (hole_around(hand, 400).mean() > MAX_HOLE_AREA)
    assert found == {False, True}


@pytest.mark.parametrize("colours", ["palette", "near it", "others"])
def test_colours_are_read_exactly(tmp_path, colours):
    random = np.random.default_rng(1)
    known = np.array(PALETTE, np.uint8)
    picture = np.zeros((1080, 1920, 3), np.uint8)
    for _ in range(40):
        x, y = random.integers(0, 1800), random.integers(0, 1000)
        width, height = random.integers(1, 300, 2)
        picture[y : y + height, x : x + width] = known[random.integers(len(known))]
    foreign = {"palette": known, "near it": np.clip(known.astype(int) + random.integers(-1, 2, known.shape), 0, 255)}
    specks = random.integers((1080, 1920), size=(1500, 2))  # below 0.1 % of the picture
    chosen = foreign.get(colours, random.integers(0, 4, (64, 3)) * 64).astype(np.uint8)
    picture[specks[:, 0], specks[:, 1]] = chosen[random.integers(len(chosen), size=len(specks))]
    expected = np.zeros((1080, 1920), np.uint8)
    for label, colour in enumerate(known):
        expected[(picture == colour).all(-1)] = label
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), picture[..., ::-1])
    valid = (15, 0, 1920, 1050)
    expected[:, :15] = expected[1050:] = 0
    np.testing.assert_array_equal(read_labels(path, valid).at((0, 0, 1920, 1080)), expected)
    picture[100:200, 100:200] = (64, 64, 64)
    cv2.imwrite(str(path), picture[..., ::-1])
    with pytest.raises(Fault, match="palette"):
        read_labels(path, valid)
