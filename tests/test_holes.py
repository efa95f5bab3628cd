"""Painting holes of any shape, and zooming in on holes; the painters are known functions of what they see."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hoi_lightning import generate as verb
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import Layout, hole_mask
from hoi_lightning.holes import to_side, zoom_square
from hoi_lightning.pipeline import HOIPipeline
from hoi_lightning.tasks import FusionNet
from hoi_lightning.window import square_holding
from tests.test_pipeline import FakeMaskNet, picture
from tests.tiny_pipelines import sd

SMALL = Layout(a=0.3, x=0.6, y=0.7, b1=0.0, b2=1.0)
SIZE = 48


class Inverter:
    """Paints the negative of what it sees, and remembers the holes."""

    checkpoint_hash = "b" * 64
    image_size = SIZE
    hole_dilation = 0.2

    def __init__(self) -> None:
        self.holes: list[Tensor] = []

    def sample_holes(self, obj: Tensor, hole: Tensor, seeds: list[int]) -> Tensor:
        self.holes.extend(hole)
        return torch.lerp(obj, -obj, hole)


@pytest.fixture
def pipeline() -> HOIPipeline:
    return HOIPipeline(FakeMaskNet(), Inverter())


def hole_of(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A box with a corner missing."""
    x0, y0, x1, y1 = box
    hole = np.zeros((height, width), dtype=bool)
    hole[y0:y1, x0:x1] = True
    hole[y0 : (y0 + y1) // 2, x0 : (x0 + x1) // 2] = False
    return hole


HOLES = [(30, 20, 60, 50), (0, 0, 13, 9), (140, 60, 160, 120), (2, 50, 115, 60)]


@pytest.mark.parametrize("width", [1, 2, 4, 9])
def test_a_stroke_thinner_than_the_painter_s_pixel_is_painted(pipeline: HOIPipeline, width: int) -> None:
    image, hole = picture(400, 400), hole_of(400, 400, (100, 50, 100 + width, 350))
    result = np.asarray(pipeline(image, num_images=1, hole=hole).images[0])
    assert (result[hole] != np.asarray(image)[hole]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("zoom", [False, True])
@pytest.mark.parametrize("box", HOLES)
def test_a_hole_is_painted_and_nothing_else(
    pipeline: HOIPipeline, box: tuple[int, int, int, int], zoom: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, hole = picture(160, 120), hole_of(160, 120, box)
    monkeypatch.setattr(pipeline, "masknet", None)  # not to be asked
    output = pipeline(image, num_images=2, hole=hole, zoom=zoom)
    assert output.layouts == []
    assert output.window[3] - output.window[1] == 120
    for result, where in zip(output.images, output.hole_masks, strict=True):
        assert (where == hole).all()
        assert (np.asarray(result)[~hole] == np.asarray(image)[~hole]).all()
        assert (np.asarray(result)[hole] != np.asarray(image)[hole]).mean() > 0.9


@pytest.mark.parametrize("layouts", [None, [SMALL]])
def test_zoom_changes_the_resolution_not_the_hole(pipeline: HOIPipeline, layouts: list[Layout] | None) -> None:
    image = picture(300, 200)
    plain, zoomed = (pipeline(image, num_images=3, layouts=layouts, zoom=zoom) for zoom in (False, True))
    assert plain.layouts == zoomed.layouts
    assert plain.views == [plain.window] * 3
    assert plain.window == zoomed.window, "MaskNet sees the whole square"
    for k, (x0, y0, x1, y1) in enumerate(zoomed.views):
        hole = plain.hole_masks[k]
        assert (zoomed.hole_masks[k] == hole).all()
        assert not np.delete(np.delete(hole, range(y0, y1), 0), range(x0, x1), 1).any()
        assert hole[y0:y1, x0:x1].sum() == hole.sum(), "the hole's whole box"
        assert SIZE <= x1 - x0 == y1 - y0 < 200, "more of the painter's pixels per pixel, never more than one"
        one, other = np.asarray(plain.images[k]), np.asarray(zoomed.images[k])
        assert (one[~hole] == other[~hole]).all()
        assert (one[hole] != other[hole]).any()


@pytest.mark.parametrize("seed", range(4))
def test_at_the_picture_s_own_resolution_every_painted_pixel_lies_where_it_belongs(
    pipeline: HOIPipeline, seed: int
) -> None:
    rng, image = np.random.default_rng(seed), picture(260, 200, seed)
    x0, y0 = rng.integers(0, 170, 2)
    hole = hole_of(260, 200, (x0, y0, x0 + 25, y0 + 19))
    native = np.asarray(image)
    output = pipeline(image, num_images=1, hole=hole, zoom=True)
    assert output.views[0][2] - output.views[0][0] == SIZE
    assert (np.asarray(output.images[0])[hole] == 255 - native[hole]).all()
    coarse = np.asarray(pipeline(image, num_images=1, hole=hole).images[0])
    assert np.abs(coarse[hole].astype(int) - (255 - native[hole])).mean() > 10

    at = Layout(a=0.3, x=0.8, y=float(rng.uniform(-0.5, 0.5)), b1=1.0, b2=0.0)  # a short forearm
    output = pipeline(image, num_images=1, layouts=[at], zoom=True)
    assert output.views[0][2] - output.views[0][0] == SIZE
    inside = output.hole_masks[0]
    # the hole is drawn twice, in the square's coordinates and in the view's: they agree but for rounding
    assert (np.asarray(output.images[0])[inside] == 255 - native[inside]).mean() > 0.99


@pytest.mark.parametrize("size", [(48, 48), (33, 40)])
def test_a_view_that_is_the_whole_square_changes_nothing(pipeline: HOIPipeline, size: tuple[int, int]) -> None:
    image = picture(*size)
    for settings in ({}, {"hole": hole_of(*size, (3, 5, 20, 19))}):
        plain, zoomed = (pipeline(image, num_images=2, zoom=zoom, **settings) for zoom in (False, True))
        assert zoomed.views == plain.views
        assert [one.tobytes() for one in zoomed.images] == [one.tobytes() for one in plain.images]
    wide = hole_of(200, 200, (10, 90, 190, 95))  # needs all of a square that is larger than the painter's
    plain, zoomed = (pipeline(picture(200, 200), num_images=1, hole=wide, zoom=zoom) for zoom in (False, True))
    assert zoomed.images[0].tobytes() == plain.images[0].tobytes()


def test_an_empty_hole_is_not_zoomed_in_on() -> None:
    assert zoom_square(np.zeros((100, 200), bool), (50, 0, 150, 100), 32) == (50, 0, 150, 100)


@pytest.mark.parametrize("side", [16, 48, 50])
def test_another_resolution_covers_the_hole(side: int) -> None:
    hole = np.random.default_rng(0).random((48, 48)) < 0.02
    small = to_side(hole, side)[0].numpy()
    rows, columns = np.nonzero(hole)
    assert set(np.unique(small)) == {0, 1}
    assert small[(rows * 2 + 1) * side // 96, (columns * 2 + 1) * side // 96].all()
    if side == 48:
        assert (small == hole).all()
    assert small.mean() < 0.5


def test_squares_about_holes_lie_inside_and_hold_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        width, height = rng.integers(40, 300, 2)
        side = min(width, height)
        x0, y0 = rng.integers(0, width - 8), rng.integers(0, height - 8)
        x1, y1 = (min(low + int(rng.integers(1, side)), end) for low, end in ((x0, width), (y0, height)))
        left, top, right, bottom = square_holding((x0, y0, x1, y1), width, height)
        assert right - left == bottom - top == side
        assert 0 <= left <= x0
        assert 0 <= top <= y0
        assert x1 <= right <= width
        assert y1 <= bottom <= height
        hole = np.zeros((height, width), dtype=bool)
        hole[y0:y1, x0:x1] = True
        near = zoom_square(hole, (left, top, right, bottom), SIZE)
        assert near[2] - near[0] == near[3] - near[1] >= min(side, max(SIZE, 1.4 * max(x1 - x0, y1 - y0)))
        assert left <= near[0] <= x0
        assert top <= near[1] <= y0
        assert x1 <= near[2] <= right
        assert y1 <= near[3] <= bottom


@pytest.mark.parametrize(
    ("hole", "reason"),
    [
        (np.zeros((48, 64), dtype=bool), "hole: is empty.*make white"),
        (np.ones((48, 64), dtype=bool), "hole: covers the whole picture.*make black"),
        (np.ones((64, 48), dtype=bool), "hole: 48x64, but the picture is 64x48"),
        (np.ones((48, 64, 3), dtype=bool), "hole: 3x64x48, but the picture is 64x48"),
        (np.full((48, 64), 128, dtype=np.uint8), "hole: holds uint8, not bool; threshold it"),
        (hole_of(64, 48, (2, 2, 60, 10)), r"reaches from \(2, 2\) to \(60, 10\), beyond the square .*in parts"),
    ],
)
def test_what_is_no_hole_is_refused(pipeline: HOIPipeline, hole: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        pipeline(picture(), hole=hole)
    assert "\n" not in str(caught.value)


def test_a_hole_excludes_layouts(pipeline: HOIPipeline) -> None:
    with pytest.raises(ValueError, match="leave out layouts"):
        pipeline(picture(), hole=hole_of(64, 48, (2, 2, 20, 10)), layouts=[SMALL])


@pytest.fixture(scope="module")
def painters(sd_folder: Path) -> dict[str, Any]:
    from hoi_lightning.painters import DiffusersPainter

    torch.manual_seed(0)
    return {
        "FusionNet": FusionNet(str(sd_folder), image_size=64).eval(),
        "StableDiffusionInpaintPipeline": DiffusersPainter(sd(), image_size=64, num_inference_steps=2),
    }


@pytest.mark.parametrize("name", ["FusionNet", "StableDiffusionInpaintPipeline"])
def test_painters_check_pictures_and_holes_alike(painters: dict[str, Any], name: str) -> None:
    painter, obj = painters[name], torch.zeros(2, 3, 64, 64)
    odd = {"FusionNet": 60, "StableDiffusionInpaintPipeline": 61}[name]
    multiple, nearest = {60: (8, 64), 61: (2, 60)}[odd]
    for pictures, hole, reason in (
        (obj, torch.ones(2, 1, 32, 32), "of their size"),
        (obj, torch.ones(2, 3, 64, 64), "of their size"),
        (obj, torch.ones(1, 1, 64, 64), "of their size"),
        (obj, torch.full((2, 1, 64, 64), 0.5), "holes: values other than 0 and 1; threshold"),
        (
            torch.zeros(1, 3, odd, odd),
            torch.ones(1, 1, odd, odd),
            f"pictures of {odd}x{odd}: {name} .*multiples of {multiple}; resize to {nearest}x{nearest}",
        ),
    ):
        with pytest.raises(InputError, match=reason):
            painter.sample_holes(pictures, hole, [0, 1][: len(pictures)])


def test_fusionnet_paints_squares(painters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="64x48: FusionNet paints squares"):
        painters["FusionNet"].sample_holes(torch.zeros(1, 3, 48, 64), torch.ones(1, 1, 48, 64), [0])


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Inverter]:
    """Runs the verb on `cup.png`, 120x90."""
    painter = Inverter()
    monkeypatch.setattr(HOIPipeline, "from_checkpoints", lambda *_: HOIPipeline(FakeMaskNet(), painter))
    picture(120, 90).save(tmp_path / "cup.png")

    def run(*more: str) -> Inverter:
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        words = ["--images", "{tmp}/cup.png", "--out", "{tmp}/out", "--num-images", "2", *more]
        verb.run(parser.parse_args([word.format(tmp=tmp_path) for word in words]))
        return painter

    return run


def save(hole: np.ndarray, path: Path, mode: str = "L") -> str:
    Image.fromarray(hole.astype(np.uint8) * 255).convert(mode).save(path)
    return str(path)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_generate_paints_a_hole(generate: Callable[..., Inverter], tmp_path: Path, mode: str) -> None:
    hole = hole_of(120, 90, (80, 10, 118, 40))
    generate("--hole", save(hole, tmp_path / "hole.png", mode))
    record = json.loads((tmp_path / "out/cup_1.json").read_text())
    assert record["layout"] is None
    assert record["window"] == record["view"] == [28, 0, 118, 90]
    assert record["hole_area"] == pytest.approx(hole.mean(), abs=1e-6)
    expected = HOIPipeline(FakeMaskNet(), Inverter())(picture(120, 90), num_images=2, hole=hole)
    with Image.open(tmp_path / "out/cup_1.png") as written:
        assert written.tobytes() == expected.images[1].tobytes()
    assert (tmp_path / "out/grid.png").is_file()


def test_generate_zooms_and_keeps_what_is_finished(generate: Callable[..., Inverter], tmp_path: Path) -> None:
    holes = [hole_of(120, 90, (40, 10, 60, 40)), hole_of(120, 90, (40, 12, 60, 40))]
    names = [save(hole, tmp_path / f"{k}.png") for k, hole in enumerate(holes)]
    runs = [("--hole", names[0]), ("--hole", names[0], "--zoom"), ("--hole", names[1], "--zoom"), ("--zoom",)]
    painted = []
    for words in runs:
        painted.append(len(generate(*words).holes))
        assert len(generate(*words).holes) == painted[-1], "the same order is kept"
        view = json.loads((tmp_path / "out/cup_0.json").read_text())["view"]
        assert (view[2] - view[0] < 90) == ("--zoom" in words)
    assert painted == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--hole", "{tmp}/empty.png"], r"--hole .*empty.png: is empty"),
        (["--hole", "{tmp}/full.png"], r"--hole .*full.png: covers the whole picture"),
        (["--hole", "{tmp}/other.png"], r"--hole .*other.png: 90x120, but cup.png is 120x90; give a hole of the same"),
        (["--hole", "{tmp}/grey.png"], r"--hole .*grey.png: 600 pixels are neither black nor white.*128.*threshold"),
        (["--hole", "{tmp}/red.png"], r"--hole .*red.png: .*neither black nor white, such as RGB \(255, 0, 0\)"),
        (["--hole", "{tmp}/glass.png"], r"--hole .*glass.png: is transparent in places; save it on black"),
        (["--hole", "{tmp}/words.png"], r"words.png: not a picture"),
        (["--hole", "{tmp}/absent.png"], r"absent.png: no such file"),
        (["--hole", "{tmp}/hole.png", "--box", "0", "0", "20", "20"], "hole.png: reaches .*leave out --box"),
        (["--hole", "{tmp}/hole.png", "--fix-size", "9"], "--hole says where hands go; leave out --fix-size"),
        (["--hole", "{tmp}/wide.png"], "wide.png: reaches .*in parts"),
    ],
)
def test_generate_refuses_what_is_no_hole_before_it_paints(
    generate: Callable[..., Inverter], tmp_path: Path, words: list[str], reason: str
) -> None:
    hole = hole_of(120, 90, (40, 10, 60, 50))
    save(hole, tmp_path / "hole.png")
    save(hole & False, tmp_path / "empty.png")
    save(hole | True, tmp_path / "full.png")
    save(hole.T, tmp_path / "other.png")
    save(hole_of(120, 90, (1, 1, 119, 5)), tmp_path / "wide.png")
    Image.fromarray(hole.astype(np.uint8) * 128).save(tmp_path / "grey.png")
    Image.fromarray(hole[..., None] * np.array([255, 0, 0], np.uint8)).save(tmp_path / "red.png")
    Image.fromarray(hole.astype(np.uint8)[..., None] * np.array([0, 0, 0, 255], np.uint8)).save(tmp_path / "glass.png")
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(InputError, match=reason) as caught:
        generate(*words)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("words", [["--layout", "a.json"], ["--interpolate", "a.json", "b.json"]])
def test_a_hole_and_layouts_exclude_each_other(generate: Callable[..., Inverter], words: list[str]) -> None:
    with pytest.raises(SystemExit):
        generate("--hole", "hole.png", *words)


def test_fusionnet_s_own_hole_is_what_the_pipeline_draws(painters: dict[str, Any]) -> None:
    fusionnet, seen = painters["FusionNet"], []
    recorder = SimpleNamespace(
        image_size=64,
        hole_dilation=fusionnet.hole_dilation,
        sample_holes=lambda obj, hole, seeds: seen.append(hole) or obj,
    )
    layout = Layout(0.7, 0.1, -0.3, 0.6, 0.8)
    HOIPipeline(FakeMaskNet(), recorder)(picture(200, 150), num_images=1, layouts=[layout])
    assert torch.equal(seen[0], fusionnet.hole_mask(layout.to_tensor()[None]))
    assert torch.equal(seen[0], hole_mask(layout.to_tensor(), 64)[None])
