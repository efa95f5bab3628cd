"""Which square of a picture the networks see."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hoi_lightning.window import CROP_FACTOR, centred_square, choose_square, find_object, square_about


def table(width: int, height: int, seed: int = 0) -> Image.Image:
    """A lit, grained surface without anything on it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    light = 150 + 40 * x - 30 * y**2
    grain = rng.normal(0, 4, (height, width))
    return Image.fromarray(np.clip((light + grain)[..., None] * [1.0, 0.95, 0.85], 0, 255).astype(np.uint8))


def with_mug(width: int, height: int, centre: tuple[int, int], radius: int) -> Image.Image:
    image = table(width, height)
    x, y = centre
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(180, 40, 50))
    draw.ellipse((x - radius // 2, y - radius // 2, x + radius // 2, y + radius // 2), fill=(90, 20, 30))
    return image


@pytest.mark.parametrize("centre", [(60, 60), (320, 180), (560, 290), (560, 80)])
@pytest.mark.parametrize("radius", [15, 40])
def test_an_object_anywhere_is_found(centre: tuple[int, int], radius: int) -> None:
    box = find_object(with_mug(640, 360, centre, radius))
    assert box is not None
    slack = 10  # two pixels of the size at which it is sought
    expected = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    assert all(abs(found - wanted) <= slack for found, wanted in zip(box, expected, strict=True)), box


def test_nothing_is_found_where_nothing_or_everything_stands_out() -> None:
    assert find_object(table(300, 200)) is None
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    assert find_object(Image.fromarray(noise)) is None
    twins = with_mug(640, 360, (200, 180), 40)
    twins.paste(with_mug(640, 360, (440, 180), 40).crop((390, 130, 490, 230)), (390, 130))
    assert find_object(twins) is None
    assert choose_square(twins) == centred_square(640, 360)


def test_a_small_or_off_centre_object_moves_the_square_and_a_large_one_does_not() -> None:
    for centre in ((60, 60), (560, 300)):
        x0, y0, x1, y1 = choose_square(with_mug(640, 360, centre, 30))
        assert x1 - x0 == y1 - y0 == pytest.approx(CROP_FACTOR * 60, rel=0.2)
        assert x0 <= centre[0] - 30 < centre[0] + 30 <= x1
        assert y0 <= centre[1] - 30 < centre[1] + 30 <= y1
    assert choose_square(with_mug(640, 360, (320, 180), 70)) == centred_square(640, 360)
    assert choose_square(table(640, 360)) == centred_square(640, 360)


def test_squares_lie_inside_and_frame_the_box_as_training_crops_do() -> None:
    assert centred_square(640, 360) == (140, 0, 500, 360)
    assert centred_square(30, 41) == (0, 5, 30, 35)
    x0, y0, x1, y1 = square_about((300, 150, 340, 190), 640, 360)
    assert (x1 - x0, y1 - y0) == (104, 104)
    assert (x0 + x1, y0 + y1) == (640, 340)
    for box in ((0, 0, 20, 20), (620, 340, 640, 360), (0, 0, 640, 360), (0, 100, 640, 130), (5, 5, 6, 6)):
        x0, y0, x1, y1 = square_about(box, 640, 360)
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 360
        assert x1 - x0 == y1 - y0
        assert box[2] - box[0] > 360 or (x0 <= box[0] and x1 >= box[2])
