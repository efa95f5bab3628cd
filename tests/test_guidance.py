"""Wishes: energies are low where they are fulfilled, and what the command line makes of pixels."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance, cover_points, fix, follow_heat_map, keep_out, touch
from hoi_lightning.hand_proxy import Layout, contact, interpolate_layouts, splat
from hoi_lightning.wishes import Wishes, read_layout

HERE = Layout(0.6, 0.1, -0.2, 0.0, 1.0)


def half(side: str) -> torch.Tensor:
    """A map that is 1 in the left or right half."""
    region = torch.zeros(1, 1, 32, 32)
    region[..., slice(0, 16) if side == "left" else slice(16, 32)] = 1
    return region


def at(x: float, y: float, a: float = 0.5, b: tuple[float, float] = (0.0, 1.0)) -> torch.Tensor:
    return torch.tensor([[a, x, y, *b]], requires_grad=True)


def descend(energy: Any, layout: torch.Tensor, steps: int = 100) -> torch.Tensor:
    x = layout.detach()
    for _ in range(steps):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(energy(leaf).sum(), leaf)
        assert slope.isfinite().all()
        x = x - 0.05 * slope / slope.norm().clamp(min=1)
    return x


def test_following_a_heat_map_leads_into_it_from_far_off() -> None:
    energy = follow_heat_map(half("left"))
    assert energy(at(-0.5, 0)) < energy(at(0.2, 0)) < energy(at(1.5, 0))
    assert descend(energy, at(1.8, 0.3))[0, 1] < -0.1
    brighter = follow_heat_map(half("left") + 0.1)
    assert brighter(at(0.9, 0)) < energy(at(0.9, 0))


def test_keeping_out_counts_the_forearm_too() -> None:
    energy = keep_out(half("left"))
    away, reaching = at(0.7, 0, b=(1.0, 0.0)), at(0.7, 0, b=(-1.0, 0.0))
    assert energy(away) < energy(reaching)
    moved = descend(energy, at(0.1, 0, b=(-0.5, 0.8)))
    hand = (splat(moved, 32) > 0.5).float()
    assert (hand * half("left")).sum() / hand.sum() < 0.1


def test_touching_is_done_when_it_touches() -> None:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 20:24, 4:8] = 1
    energy = touch(mask)
    moved = descend(energy, at(0.9, -0.9))
    assert contact(moved, mask.bool()).item()
    assert energy(moved).item() == pytest.approx(0, abs=1e-6)
    assert not contact(at(0.9, -0.9).detach(), mask.bool()).item()


def test_points_are_covered() -> None:
    points = torch.tensor([[0.3, 0.3], [0.5, 0.2]])
    moved = descend(cover_points(points), at(-0.8, -0.8, a=0.8))
    assert ((points - moved[0, 1:3]).norm(dim=1) <= 0.8**2 / 2 + 0.05).all()


@pytest.mark.parametrize("make", [follow_heat_map, keep_out, touch, lambda m: cover_points(torch.zeros(1, 2))])
def test_no_wish_resizes_a_hand_and_rows_are_their_own(make: Any) -> None:
    layouts = torch.tensor([[0.5, 0.6, 0.1, 0.6, 0.8], [0.7, -0.2, 0.1, 1.0, 0.0]], requires_grad=True)
    energy = make(half("left"))
    (slope,) = torch.autograd.grad(energy(layouts)[0], layouts)
    assert (slope[:, 0] == 0).all()
    assert (slope[1] == 0).all()
    assert slope[0].abs().max() > 0
    assert Guidance(energies=(energy, energy), strength=3).energy(layouts)[0].item() == pytest.approx(
        6 * energy(layouts)[0].item()
    )


@pytest.mark.parametrize("make", [follow_heat_map, keep_out, touch, lambda m: cover_points(torch.zeros(1, 2))])
def test_wishes_follow_the_layouts_to_their_device(make: Any) -> None:
    assert make(half("left"))(torch.zeros(2, 5, device="meta")).device.type == "meta"


def test_fixing_says_nothing_else() -> None:
    assert torch.equal(fix(size=0.5).isnan(), torch.tensor([False, True, True, True, True]))
    everything = fix((0.1, 0.2), 0.5, math.pi / 2)
    torch.testing.assert_close(everything, torch.tensor([0.5, 0.1, 0.2, 0.0, 1.0]))


@pytest.mark.parametrize(("one", "other"), [(10, 350), (350, 10), (170, -170), (90, 200)])
def test_interpolation_turns_the_shorter_way(one: float, other: float) -> None:
    def layout(degrees: float, **more: float) -> Layout:
        radians = math.radians(degrees)
        return Layout(**{"a": 0.5, "x": 0.0, "y": 0.0, "b1": math.cos(radians), "b2": math.sin(radians)} | more)

    start, end = layout(one), layout(other, a=0.7, x=1.0)
    assert interpolate_layouts(start, end, 0).to_tensor().tolist() == pytest.approx(start.to_tensor().tolist())
    assert interpolate_layouts(start, end, 1).to_tensor().tolist() == pytest.approx(end.to_tensor().tolist(), abs=1e-6)
    middle = interpolate_layouts(start, end, 0.5)
    assert (middle.a, middle.x) == pytest.approx((0.6, 0.5))
    assert math.hypot(middle.b1, middle.b2) == pytest.approx(1)
    to_ends = [math.remainder(middle.theta - layout.theta, 2 * math.pi) for layout in (start, end)]
    assert to_ends[0] == pytest.approx(-to_ends[1])
    assert abs(to_ends[0]) < math.pi / 2


FIELDS = '{"a": 1, "x": 0, "y": 0, "b1": 1, "b2": 0}'


def grey(width: int, height: int, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    picture = Image.new("L", (width, height), 0)
    if box:
        picture.paste(255, box)
    return picture


def test_pixels_become_ndc_of_the_square() -> None:
    wishes = Wishes(position=(300, 150), size=25, direction=90)
    guidance = wishes.guidance((400, 200), (200, 0, 400, 200))
    assert guidance is not None
    assert guidance.fixed is not None
    assert guidance.fixed[1:].tolist() == pytest.approx([0.0, 0.5, 0.0, 1.0], abs=1e-6)
    assert guidance.fixed[0].item() ** 2 / 2 == pytest.approx(2 * 25 / 200)
    assert Wishes().guidance((400, 200), (0, 0, 200, 200)) is None


def test_maps_are_cut_at_the_square() -> None:
    whole = grey(40, 20, (30, 0, 40, 20))  # a tenth of the picture's size
    inside = Wishes(heat_map=whole).guidance((400, 200), (200, 0, 400, 200))
    assert inside is not None
    assert inside.energy(at(0.6, 0)) < inside.energy(at(-0.6, 0))


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        (Wishes(position=(401, 10)), r"--fix-position 401 10: outside cup.png, which is 400x200"),
        (Wishes(position=(10, -1)), "outside cup.png"),
        (Wishes(points=((1, 1), (10, 300))), "--key-point 10 300: outside"),
        (Wishes(size=0), "--fix-size 0"),
        (Wishes(size=900), "--fix-size 900"),
        (Wishes(direction=math.inf), "--fix-direction inf"),
        (Wishes(direction=math.nan), "--fix-direction nan"),
        (Wishes(heat_map=grey(100, 100, (0, 0, 9, 9))), "--heat-map: 100x100, but cup.png is 400x200.*aspect ratio"),
        (Wishes(touch=grey(400, 200)), "--touch: is all black"),
        (Wishes(keep_out=grey(400, 200, (0, 0, 400, 200))), "--keep-out: is all white"),
        (Wishes(position=(5, 5), keep_out=grey(40, 20, (0, 0, 9, 9))), "--fix-position 5 5: contradicts --keep-out"),
        (Wishes(points=((300, 9), (5, 5)), keep_out=grey(40, 20, (0, 0, 9, 9))), "--key-point 5 5: contradicts --keep"),
        (Wishes(touch=grey(80, 40, (2, 2, 9, 9)), keep_out=grey(40, 20, (0, 0, 9, 9))), "--touch: lies in --keep-out"),
        (Wishes(heat_map=grey(80, 40, (2, 2, 9, 9)), keep_out=grey(40, 20, (0, 0, 9, 9))), "--heat-map: lies in"),
        (Wishes(position=(300, 5), heat_map=grey(40, 20, (0, 0, 9, 9))), "--fix-position contradicts --heat-map"),
        (Wishes(touch=grey(40, 20, (0, 0, 40, 20))), "--touch: is 255 everywhere"),
        (
            Wishes(position=(9, 9), size=10, points=((90, 90),)),
            "--key-point 90 90: a hand of --fix-size 10 at --fix",
        ),
        (
            Wishes(size=5, points=((10, 10), (90, 90))),
            "--key-point 90 90: a hand of --fix-size 5 does not cover",
        ),
        (Wishes(position=(300, 99), size=9, touch=grey(40, 20, (0, 0, 9, 9))), "--touch: a hand of --fix-size 9 at"),
    ],
)
def test_wishes_that_cannot_be_meant_are_one_line(wishes: Wishes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        wishes.check("cup.png", 400, 200)
    assert "\n" not in str(caught.value)


def test_a_faint_heat_map_is_as_good_as_a_bright_one() -> None:
    """Where it is brightest is where hands are wished, whatever its grey."""
    faint = grey(40, 20, (0, 0, 9, 9)).point(lambda value: value * 40 // 255)
    Wishes(position=(5, 5), heat_map=faint).check("cup.png", 400, 200)
    with pytest.raises(InputError, match="--fix-position contradicts --heat-map"):
        Wishes(position=(300, 5), heat_map=faint).check("cup.png", 400, 200)


def test_a_hand_that_just_reaches_is_no_contradiction() -> None:
    at = Wishes(position=(50, 50), size=20, points=((69, 50),), touch=grey(400, 200, (65, 40, 80, 60)))
    at.check("cup.png", 400, 200)
    Wishes(size=20, points=((30, 50), (69, 50))).check("cup.png", 400, 200)


def test_sensible_wishes_pass() -> None:
    Wishes(
        (5, 5),
        20,
        30,
        grey(40, 20, (0, 0, 9, 9)),
        grey(81, 40, (20, 0, 40, 20)),
        grey(400, 200, (0, 0, 9, 9)),
        ((1, 2),),
    ).check("cup.png", 400, 200)


def test_a_place_outside_the_square_asks_for_a_box() -> None:
    with pytest.raises(InputError, match=r"--fix-position 10 10: outside the square \[100, 0, 300, 200\].*--box"):
        Wishes(position=(10, 10)).guidance((400, 200), (100, 0, 300, 200))


@pytest.mark.parametrize("flag", ["heat_map", "touch", "keep_out"])
def test_a_map_that_says_nothing_in_the_square_asks_for_a_box(flag: str) -> None:
    wanted, square = grey(40, 20, (0, 0, 9, 20)), (200, 0, 400, 200)
    wishes = Wishes(**{flag: ImageOps.invert(wanted) if flag == "keep_out" else wanted})
    wishes.check("cup.png", 400, 200)
    kind = flag.replace("_", "-")
    with pytest.raises(InputError, match=rf"--{kind}: is all (black|white) in the square \[200, 0, 400, 200\].*--box"):
        wishes.guidance((400, 200), square)
    assert wishes.guidance((400, 200), (0, 0, 200, 200)) is not None


def test_layouts_are_read_from_records_and_moved_into_the_square(tmp_path: Path) -> None:
    fields = {"a": 0.6, "x": 0.1, "y": -0.2, "b1": 0.0, "b2": 1.0}
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(fields))
    assert read_layout(path) == HERE
    path.write_text(json.dumps({"layout": fields, "window": [0, 0, 100, 100], "seed": 3}))
    assert read_layout(path, (0, 0, 100, 100)) == HERE
    moved = read_layout(path, (50, 0, 100, 50))
    assert 50 + (moved.x + 1) * 25 == pytest.approx((HERE.x + 1) * 50), "the same pixel"
    assert moved.r * 25 == pytest.approx(HERE.r * 50)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a JSON file"),
        ("[1, 2]", "holds no layout"),
        ('{"a": 1, "x": 0, "y": 0, "b1": 1}', "field b2 of the layout is missing"),
        ('{"layout": {"a": NaN, "x": 0, "y": 0, "b1": 1, "b2": 0}}', "field a of the layout is nan"),
        ('{"a": "1", "x": 0, "y": 0, "b1": 1, "b2": 0}', "field a of the layout is '1'"),
        ('{"a": 1, "x": 0, "y": null, "b1": 1, "b2": 0}', "field y of the layout is None"),
        ('{"a": 1, "x": 0, "y": 0, "b1": 0, "b2": 0}', "direction"),
        (f'{{"a": {10**400}, "x": 0, "y": 0, "b1": 0, "b2": 1}}', "field a of the layout is 1000"),
        (f'{{"layout": {FIELDS}, "window": null}}', "window None is no square"),
        (f'{{"layout": {FIELDS}, "window": [0, 0, 0, 0]}}', "no square"),
        (f'{{"layout": {FIELDS}, "window": [0, 0, NaN, 1]}}', "no square"),
        (f'{{"layout": {FIELDS}, "window": [0, 0, 100, 256]}}', "no square"),
        ('{"a": 50, "x": 0, "y": 0, "b1": 0, "b2": 1}', "a = 50, a hand larger than the picture; 2 at most"),
        ('{"a": -1, "x": 0, "y": 0, "b1": 0, "b2": 1}', "a > 0"),
    ],
)
def test_bad_layouts_name_their_field(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "layout.json"
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        read_layout(path, (0, 0, 9, 9))
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_layout(tmp_path / "absent.json")


def test_a_map_s_values_survive(tmp_path: Path) -> None:
    from hoi_lightning.wishes import _cut

    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 128).astype(np.uint8), (128, 1)))
    cut = _cut(ramp, (128, 128), (0, 0, 128, 128))
    assert cut.shape == (1, 1, 64, 64)
    assert cut[0, 0, 5].diff().min() >= 0
    assert (cut.min().item(), cut.max().item()) == pytest.approx((0, 1), abs=0.02)
