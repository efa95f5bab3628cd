"""Laws of the hand proxy: drawing, geometry, gradients, fitting."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hoi_lightning.hand_proxy import (
    Layout,
    contact,
    crop_layout,
    draw_layouts,
    fit_layout,
    flip_layout,
    hole_mask,
    proxy_iou,
    scale_layout,
    splat,
)


def random_layouts(
    count: int, seed: int, a: tuple[float, float] = (0.3, 1.0), reach: float = 0.9, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Layouts with a in a range and |x|, |y| ≤ reach."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, 4, generator=generator, dtype=dtype)
    size = a[0] + (a[1] - a[0]) * uniform[:, :1]
    theta = 2 * math.pi * uniform[:, 3:]
    return torch.cat([size, (2 * uniform[:, 1:3] - 1) * reach, theta.cos(), theta.sin()], dim=1)


def rasterise(layout: Tensor, size: int) -> np.ndarray:
    """Draw the proxy with Pillow: an ellipse and a long rectangle."""
    fine = 8 * size
    image = Image.new("1", (fine, fine))
    draw = ImageDraw.Draw(image)
    a, x, y, b1, b2 = layout.tolist()
    r = a * a / 2

    def at(u: float, v: float) -> tuple[float, float]:
        return (x + u * b1 - v * b2 + 1) * fine / 2, (y + u * b2 + v * b1 + 1) * fine / 2

    (cx, cy), radius = at(0, 0), r * fine / 2
    draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=1)
    draw.polygon([at(0, -r / 2), at(9, -r / 2), at(9, r / 2), at(0, r / 2)], fill=1)
    return np.array(image.convert("L").resize((size, size), Image.Resampling.BOX)) > 127


def draw_hand(theta: float, sleeve: float, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Palm, five fingers, forearm along theta, and a sleeve of `sleeve` palm widths; mask and 21 keypoints."""
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    along, across = np.array([math.cos(theta), math.sin(theta)]), np.array([-math.sin(theta), math.cos(theta)])
    width, centre = 0.2 * size, np.array([0.45, 0.5]) * size

    def bone(start: np.ndarray, end: np.ndarray, thickness: float) -> None:
        draw.line([tuple(start), tuple(end)], fill=1, width=round(thickness))
        for x, y in (start, end):
            draw.ellipse((x - thickness / 2, y - thickness / 2, x + thickness / 2, y + thickness / 2), fill=1)

    bone(centre - 0.2 * width * along, centre + 0.2 * width * along, width)
    wrist = centre + 0.6 * width * along
    bone(wrist, wrist + 2 * size * along, 0.65 * width)
    bone(wrist + (0.5 + sleeve / 2) * width * along, wrist + 2 * size * along, sleeve * width)
    keypoints = [wrist]
    for side, spread, length in [
        (0.5, 1.0, 0.7),
        (0.36, 0.2, 0.8),
        (0.12, 0.05, 1.0),
        (-0.12, -0.05, 0.9),
        (-0.36, -0.2, 0.7),
    ]:
        base = centre + width * (side * across - 0.35 * along * (spread < 1))
        tip = base + length * width * (math.sin(spread) * across - math.cos(spread) * along)
        bone(base, tip, 0.2 * width)
        keypoints += [base + share * (tip - base) for share in (0, 0.4, 0.7, 1)]
    return np.array(image), np.array(keypoints)


def angle_between(one: Layout, other: Layout) -> float:
    return math.degrees(math.acos(min(1.0, one.b1 * other.b1 + one.b2 * other.b2)))


def test_layout_survives_its_tensor() -> None:
    layout = Layout(0.5, -0.25, 0.75, 0.6, 0.8)
    again = Layout.from_tensor(layout.to_tensor())
    torch.testing.assert_close(again.to_tensor(), layout.to_tensor())
    assert layout.r == 0.125
    assert math.isclose(math.tan(layout.theta), 0.8 / 0.6)


def test_layout_from_a_raw_network_output() -> None:
    layout = Layout.from_tensor(torch.tensor([-0.5, 0.0, 0.0, 3.0, -4.0]))
    assert (layout.a, layout.b1, layout.b2) == pytest.approx((0.5, 0.6, -0.8))
    nowhere = Layout.from_tensor(torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0]))
    assert (nowhere.b1, nowhere.b2) == (0.0, 1.0)


def test_threshold_of_the_splat_is_the_proxy() -> None:
    for layout in random_layouts(30, seed=0, a=(0.5, 1.0)):
        drawn = (splat(layout, 128)[0] > 0.5).numpy()
        reference = rasterise(layout, 128)
        assert (drawn & reference).sum() / (drawn | reference).sum() >= 0.95


def test_splat_is_a_soft_picture_of_the_hole() -> None:
    layouts = random_layouts(20, seed=1).reshape(4, 5, 5)
    soft = splat(layouts, 32)
    assert soft.shape == (4, 5, 1, 32, 32)
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert torch.equal((soft > 0.5).double(), hole_mask(layouts, 32, dilation=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    layouts = random_layouts(3, seed=2, dtype=torch.float32).to(dtype)
    assert splat(layouts, 16).dtype == dtype
    assert hole_mask(layouts, 16).dtype == dtype
    # Half precision only rounds the result: the grid itself is never rounded.
    torch.testing.assert_close(splat(layouts, 128).double(), splat(layouts.double(), 128), atol=4e-3, rtol=0)


def test_splat_commutes_with_the_mirror() -> None:
    layouts = random_layouts(20, seed=3)
    torch.testing.assert_close(splat(flip_layout(layouts), 48), splat(layouts, 48).flip(-1))
    assert torch.equal(flip_layout(flip_layout(layouts)), layouts)


def test_splat_commutes_with_a_crop() -> None:
    layouts = random_layouts(20, seed=4)
    first, last, size = 8, 40, 64  # pixels of the old picture
    box = torch.tensor([2 * first / size - 1, 0.0, 2 * last / size - 1, 1.0], dtype=torch.float64)
    cropped = splat(crop_layout(layouts, box), last - first)
    torch.testing.assert_close(cropped, splat(layouts, size)[..., size // 2 :, first:last], atol=1e-6, rtol=1e-5)


def test_crop_can_be_undone_by_its_inverse_window() -> None:
    layouts = random_layouts(20, seed=5)
    box = torch.tensor([-0.7, -0.2, 0.1, 0.6], dtype=torch.float64)
    whole = torch.tensor([[-1.0, -1, 1, 1]], dtype=torch.float64)
    half, centre = 0.4, torch.tensor([-0.3, 0.2], dtype=torch.float64).repeat(2)
    torch.testing.assert_close(crop_layout(crop_layout(layouts, box), (whole - centre) / half), layouts)


def test_splat_commutes_with_a_zoom() -> None:
    layouts = random_layouts(20, seed=6)
    torch.testing.assert_close(
        splat(scale_layout(layouts, 2.0), 32), splat(layouts, 64)[..., 16:48, 16:48], atol=1e-6, rtol=1e-5
    )
    factors = torch.linspace(0.5, 2, 20, dtype=torch.float64)
    torch.testing.assert_close(scale_layout(scale_layout(layouts, factors), 1 / factors), layouts)


def test_length_of_b_does_not_matter() -> None:
    layouts = random_layouts(10, seed=7)
    longer = layouts * layouts.new_tensor([1, 1, 1, 3, 3])
    torch.testing.assert_close(splat(longer, 32), splat(layouts, 32), atol=1e-3, rtol=0)


def test_without_a_direction_the_proxy_is_its_disc() -> None:
    layout = torch.tensor([0.8, 0.1, -0.2, 0.0, 0.0], dtype=torch.float64)
    centres = (2 * torch.arange(64, dtype=torch.float64) + 1) / 64 - 1
    disc = torch.hypot(centres - 0.1, centres[:, None] + 0.2) < 0.8**2 / 2
    assert torch.equal(splat(layout, 64)[0] > 0.5, disc)


def test_a_larger_hand_covers_more_everywhere() -> None:
    layouts = random_layouts(20, seed=8)
    assert (splat(layouts * layouts.new_tensor([1.05, 1, 1, 1, 1]), 32) > splat(layouts, 32)).all()


def test_gradients_agree_with_finite_differences() -> None:
    layouts = random_layouts(6, seed=9, reach=1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda layout: splat(layout, 6), layouts)


@pytest.mark.parametrize("a", [0.0, -0.5, 1e-4, 0.5])
@pytest.mark.parametrize("b", [(0.0, 0.0), (1e-5, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("centre", [(1 / 16, 1 / 16), (1 / 16, 0.0), (50.0, -50.0)])  # on a pixel's centre of 16
def test_values_and_gradients_are_finite(a: float, b: tuple[float, float], centre: tuple[float, float]) -> None:
    layout = torch.tensor([a, *centre, *b], requires_grad=True)
    picture = splat(layout, 16)
    picture.sum().backward()
    assert picture.isfinite().all()
    assert layout.grad is not None
    assert layout.grad.isfinite().all()


def test_gradient_lives_off_canvas() -> None:
    layouts = random_layouts(300, seed=10, a=(0.3, 0.9), reach=2.0, dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(splat(layouts, 64).sum(), layouts)
    assert gradient[:, 1:3].norm(dim=1).min() > 1e-3


def test_a_hole_holds_all_points_within_the_dilation() -> None:
    size, dilation = 48, 0.3
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grid = torch.stack([rows, columns], dim=-1).reshape(-1, 2).double()
    for layout in random_layouts(5, seed=11, a=(0.6, 0.9), reach=0.5):
        proxy = hole_mask(layout, size, dilation=0).bool().flatten()
        hole = hole_mask(layout, size, dilation=dilation).bool().flatten()
        pixels = torch.cdist(grid, grid[proxy]).min(dim=1).values
        radius = float(layout[0] ** 2 / 2 * size / 2) * dilation
        assert hole[pixels <= radius - 1.5].all()
        assert not hole[pixels >= radius + 1.5].any()


@pytest.mark.parametrize("size", [96, 160])
def test_a_drawn_proxy_is_found_again(size: int) -> None:
    for vector in random_layouts(15, seed=12, a=(0.5, 0.9), reach=0.6):
        layout = Layout.from_tensor(vector)
        found = fit_layout((splat(vector, size)[0] > 0.5).numpy())
        assert math.hypot(found.x - layout.x, found.y - layout.y) * size / 2 < 1
        assert abs(found.r - layout.r) * size / 2 < 1
        assert angle_between(found, layout) < 3


def test_a_proxy_cut_off_by_the_border_is_found_again() -> None:
    for x, y, theta in [(0.9, 0.0, math.pi), (0.85, 0.7, -2.0), (-0.8, 0.8, -0.7), (0.0, 0.9, 0.4), (0.95, 0.3, -1.67)]:
        layout = Layout(0.6, x, y, math.cos(theta), math.sin(theta))
        found = fit_layout((splat(layout.to_tensor(), 128)[0] > 0.5).numpy())
        assert math.hypot(found.x - x, found.y - y) * 64 < 1
        assert abs(found.r - layout.r) * 64 < 1
        assert angle_between(found, layout) < 3


@pytest.mark.parametrize("sleeve", [0.65, 1.0, 1.3])
@pytest.mark.parametrize("theta", [0.3, 1.5, 2.6, -2.2])
def test_the_hand_end_is_found_without_keypoints(theta: float, sleeve: float) -> None:
    hand, keypoints = draw_hand(theta, sleeve)
    truth, found = fit_layout(hand, keypoints), fit_layout(hand)
    assert math.hypot(found.x - truth.x, found.y - truth.y) < 0.35 * truth.r
    assert 0.75 < found.r / truth.r < 1.35
    assert angle_between(found, truth) < 15


def test_keypoints_define_the_layout() -> None:
    hand, keypoints = draw_hand(0.8, 1.0)
    layout = fit_layout(hand, keypoints)
    low, high = keypoints.min(0), keypoints.max(0)
    centre = np.array([layout.x + 1, layout.y + 1]) * 64
    np.testing.assert_allclose(centre, (low + high) / 2)
    assert layout.r * 64 == pytest.approx((high - low).max() / 2)
    rows, columns = np.nonzero(hand)
    towards = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - centre
    np.testing.assert_allclose([layout.b1, layout.b2], towards / np.linalg.norm(towards))


def test_fitting_commutes_with_the_mirror() -> None:
    hand, keypoints = draw_hand(0.8, 1.0)
    mirrored = keypoints * [-1, 1] + [128, 0]
    for one, other in [
        (fit_layout(hand, keypoints), fit_layout(hand[:, ::-1], mirrored)),
        (fit_layout(hand), fit_layout(hand[:, ::-1])),
    ]:
        torch.testing.assert_close(other.to_tensor(), flip_layout(one.to_tensor()), atol=0.05, rtol=0)


@pytest.mark.parametrize("hand", [np.ones((40, 40), bool), np.eye(40, dtype=bool), np.pad([[True]], 20)])
def test_any_mask_has_a_layout(hand: np.ndarray) -> None:
    layout = fit_layout(hand)
    assert layout.to_tensor().isfinite().all()
    assert layout.a > 0


@pytest.mark.parametrize("shape", [(16, 16), (16, 20)])
def test_no_layout_without_a_hand(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"empty|square"):
        fit_layout(np.zeros(shape, bool))


def test_iou_of_a_proxy_with_itself_is_one() -> None:
    layout = Layout(0.7, 0.2, -0.1, 0.6, 0.8)
    hand = (splat(layout.to_tensor(), 64)[0] > 0.5).numpy()
    assert proxy_iou(layout, hand) == 1
    assert proxy_iou(layout, ~hand) == 0
    assert proxy_iou(layout, np.zeros_like(hand)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_iou_counts_the_pixels_that_are_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for size in (64, 97, 256):
        for _ in range(20):
            theta = rng.uniform(0, 2 * np.pi) if seed % 2 else rng.integers(0, 8) * np.pi / 4
            b1, b2 = (math.cos(theta), math.sin(theta)) if rng.random() < 0.95 else (0.0, 0.0)
            layout = Layout(*rng.uniform((0, -1.3, -1.3), (1.6, 1.3, 1.3)).tolist(), b1, b2)
            proxy = hole_mask(layout.to_tensor(), size, dilation=0)[0].bool().numpy()
            hand = rng.random((size, size)) < rng.random()
            expected = (proxy & hand).sum() / max((proxy | hand).sum(), 1)
            # A pixel centre on the outline itself may be rounded to either side.
            assert proxy_iou(layout, hand) == pytest.approx(expected, abs=2 / hand.sum())


def test_contact_is_overlap_with_the_dilated_object() -> None:
    object_mask = torch.zeros(1, 100, 100, dtype=torch.bool)
    object_mask[:, 40:60, 40:60] = True  # dilated by 2 pixels: NDC ±0.24
    r = 0.18
    gaps = torch.tensor([-0.5, -0.02, -1e-3, 1e-3, 0.02, 0.5])
    layouts = torch.stack([torch.tensor([math.sqrt(2 * r), 0.24 + r + gap, 0.0, 1.0, 0.0]) for gap in gaps])
    assert contact(layouts, object_mask.expand(6, 1, 100, 100)).tolist() == [True, True, True, False, False, False]
    # The forearm crosses the object: no contact.
    assert not contact(layouts[-1] * torch.tensor([1, 1, 1, -1, 1]), object_mask)


def test_contact_of_tiny_discs_and_empty_objects() -> None:
    object_mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    layout = torch.tensor([0.01, 0.0, 0.0, 1.0, 0.0])  # between pixel centres
    assert not contact(layout, object_mask)
    object_mask[0, 4, 4] = True
    assert contact(layout, object_mask)


def test_overlay_touches_outlines_only() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = picture.copy()
    layout = Layout(0.7, 0.0, 0.0, 0.0, 1.0)
    drawn = draw_layouts(picture, [layout])
    assert np.array_equal(picture, before)
    outside = hole_mask(layout.to_tensor(), 64, dilation=0.4)[0].numpy() == 0
    assert np.array_equal(drawn[outside], picture[outside])
    assert not np.array_equal(drawn, picture)
    assert np.array_equal(draw_layouts(picture, []), picture)


def test_overlay_gives_each_layout_its_colour() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    layouts = [Layout(0.6, x, y, 0.6, 0.8) for x in (-0.5, 0.5) for y in (-0.5, 0.0, 0.5)]
    drawn = draw_layouts(picture, layouts, scale=3)
    assert drawn.shape == (192, 192, 3)
    colours = {}
    for index in range(len(layouts)):
        hidden = [Layout(0.01, 9.0, 9.0, 1.0, 0.0)] * index
        pixels = draw_layouts(picture, [*hidden, layouts[0]], scale=3).reshape(-1, 3).astype(int)
        colours[index] = tuple(pixels[np.argmax(np.ptp(pixels, axis=1))])
    assert len(set(colours.values())) == len(layouts)
