"""Augmentation moves pictures and layouts together, and its numbers belong to the sample."""

import math
from typing import Any

import pytest
import torch

from hoi_lightning.data.augment import Augment, augment, blur, colour_map, crop_boxes, crop_points, jitter_layout, warp
from hoi_lightning.hand_proxy import crop_layout, flip_layout, hole_mask, scale_layout, splat
from tests.tiny import sample

NOTHING = Augment(crop_area=1.0, sdedit=0.0, noise=0.0)


def batch_of(size: int = 48, count: int = 4, **values: Any) -> dict[str, Any]:
    layout = torch.stack([sample(i).info.layout.to_tensor() for i in range(count)])
    generator = torch.Generator().manual_seed(0)
    return {
        "layout": layout,
        "hand": hole_mask(layout, size, 0),
        "obj": torch.rand(count, 3, size, size, generator=generator) * 2 - 1,
        "sdedit": torch.ones(count, 3, size, size),
        "epoch": torch.zeros(count, dtype=torch.long),
        "index": torch.arange(count),
    } | values


def test_augmenting_commutes_with_drawing() -> None:
    """splat(augment(layout)) = augment(splat(layout)), a splat being a picture like any other."""
    settings = Augment(crop_area=0.5, flip=0.5, sdedit=0.0, noise=0.0)
    batch = batch_of(512, 16)
    moved = augment(batch | {"obj": splat(batch["layout"], 512).expand(-1, 3, -1, -1)}, settings, seed=3)
    assert (moved["layout"] - batch["layout"]).abs().amax(0)[:4].min() > 1e-2  # a mirror keeps b2
    assert (moved["obj"][:, :1] - splat(moved["layout"], 512)).abs().mean() < 5e-3
    hole = hole_mask(moved["layout"], 512, 0)
    assert ((moved["hand"] * hole).sum() / moved["hand"].maximum(hole).sum()) > 0.98


def test_a_window_of_a_splat_is_the_splat_of_the_window() -> None:
    layout = batch_of()["layout"]
    box = crop_boxes(0.5, torch.rand(4, 3, generator=torch.Generator().manual_seed(0)))
    flip = torch.tensor([True, False, True, False])
    moved = crop_layout(layout, box)
    moved = torch.where(flip[:, None], flip_layout(moved), moved)
    drawn = warp(splat(layout, 512), box, flip, nearest=False)
    assert (drawn - splat(moved, 512)).abs().mean() < 5e-3


@pytest.mark.parametrize("flip", [False, True])
def test_keypoints_move_with_the_layout_of_their_box(flip: bool) -> None:
    points = torch.rand(3, 21, 2) * 0.8 - 0.4
    low, high = points.amin(1), points.amax(1)
    a = (high - low).amax(1).sqrt()
    layout = torch.cat([a[:, None], (low + high) / 2, torch.tensor([[0.6, 0.8]]).expand(3, 2)], dim=1)
    box = torch.tensor([[-0.5, -0.6, 0.7, 0.6]]).expand(3, 4)
    moved, expected = crop_points(points, box, torch.tensor([flip] * 3)), crop_layout(layout, box)
    expected = flip_layout(expected) if flip else expected
    torch.testing.assert_close((moved.amin(1) + moved.amax(1)) / 2, expected[:, 1:3])
    torch.testing.assert_close((moved.amax(1) - moved.amin(1)).amax(1).sqrt(), expected[:, 0])


def test_augmentation_belongs_to_seed_epoch_and_sample() -> None:
    settings = Augment(crop_area=0.5, flip=0.5, blur=0.5, noise=0.5, jitter=0.2, jitter_degrees=9)
    batch = batch_of(count=8)
    whole = augment(batch, settings, seed=7)
    reverse = augment({name: value.flip(0) for name, value in batch.items()}, settings, seed=7)
    single = augment({name: value[5:6] for name, value in batch.items()}, settings, seed=7)
    for name in ("layout", "obj", "hand"):
        torch.testing.assert_close(reverse[name].flip(0), whole[name])
        torch.testing.assert_close(single[name][0], whole[name][5])
    assert torch.equal(augment(batch, settings, seed=7)["obj"], whole["obj"])
    for other in (augment(batch, settings, 8), augment(batch | {"epoch": batch["epoch"] + 1}, settings, 7)):
        assert not torch.equal(other["layout"], whole["layout"])
        assert not torch.equal(other["obj"], whole["obj"])


@pytest.mark.parametrize("kind", ["", "_latents"])
def test_sdedit_takes_the_object_picture_s_place_half_of_the_time(kind: str) -> None:
    batch = batch_of(4, 200, obj=torch.zeros(200, 3, 4, 4))
    batch |= {"obj_latents": torch.zeros(200, 4, 2, 2), "sdedit_latents": torch.ones(200, 4, 2, 2)}
    for probability in (0.0, 0.5, 1.0):
        found = augment(batch, Augment(crop_area=1.0, sdedit=probability, noise=0.0), seed=1)
        assert not {"sdedit", "sdedit_latents"} & set(found)
        assert torch.equal(found["obj"].mean((1, 2, 3)), found["obj_latents"].mean((1, 2, 3)))
        assert abs(found[f"obj{kind}"].mean().item() - probability) < 0.15
        assert set(found[f"obj{kind}"].unique().tolist()) <= {0.0, 1.0}


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    batch = batch_of()
    found = augment(batch, NOTHING, seed=0)
    for name in ("layout", "obj", "hand"):
        assert torch.equal(found[name], batch[name])


def test_noise_is_on_the_object_picture_only_and_stays_in_range() -> None:
    batch = batch_of(48, 40, obj=torch.zeros(40, 3, 48, 48), hoi=torch.zeros(40, 3, 48, 48))
    found = augment(batch, Augment(crop_area=1.0, sdedit=0.0, noise=0.5), seed=0)
    deviation = found["obj"].std((1, 2, 3))
    assert 8 < (deviation > 0).sum() < 32
    torch.testing.assert_close(deviation[deviation > 0].mean(), torch.tensor(0.1), atol=2e-3, rtol=0)
    assert torch.equal(found["hoi"], batch["hoi"])
    assert augment(batch | {"obj": batch["obj"] + 1}, Augment(noise=1.0), seed=0)["obj"].max() <= 1


def test_blur_spreads_a_point_by_its_sigma() -> None:
    point = torch.zeros(3, 1, 257, 257)
    point[:, :, 128, 128] = 1
    sigma = torch.tensor([0.0, 1.0, 2.0])
    spread = blur(point, sigma)
    assert torch.equal(spread[0], point[0])
    torch.testing.assert_close(spread.sum((1, 2, 3)), torch.ones(3))
    offsets = (torch.arange(257.0) - 128).square()
    for axes in ((1, 2), (1, 3)):
        torch.testing.assert_close((spread.sum(axes) * offsets).sum(1).sqrt(), sigma, atol=0.03, rtol=0.02)
    grey = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(blur(grey, torch.tensor([0.5])), grey)


def test_jitter_is_measured_in_radii_and_degrees() -> None:
    layout = batch_of(count=4)["layout"]
    draws = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    settings = Augment(jitter=0.2, jitter_degrees=30)
    moved = jitter_layout(layout, draws, settings)
    radius, after = layout[:, 0].square() / 2, moved[:, 0].square() / 2
    torch.testing.assert_close((moved[:, 1:3] - layout[:, 1:3]) / radius[:, None], 0.2 * draws[:, :2])
    torch.testing.assert_close(after / radius - 1, 0.2 * draws[:, 2])
    turn = torch.atan2(moved[:, 4], moved[:, 3]) - torch.atan2(layout[:, 4], layout[:, 3])
    torch.testing.assert_close(turn, 30 / 180 * math.pi * draws[:, 3])
    torch.testing.assert_close(moved[:, 3:].norm(dim=1), torch.ones(4))
    # a picture twice as large, jittered, is the jittered picture twice as large
    torch.testing.assert_close(jitter_layout(scale_layout(layout, 2), draws, settings), scale_layout(moved, 2))
    assert torch.equal(jitter_layout(layout, torch.zeros(4, 4), settings), layout)


def test_colours_change_alike_in_both_pictures_and_grey_stays_grey() -> None:
    torch.manual_seed(0)
    count = 6
    picture = 0.4 * torch.rand(count, 3, 8, 8) - 0.2
    grey = picture[:, :1].expand(-1, 3, -1, -1)
    batch = {
        "layout": torch.rand(count, 5),
        "epoch": torch.zeros(count, dtype=torch.int64),
        "index": torch.arange(count),
    }
    settings = Augment(crop_area=1.0, sdedit=0.0, noise=0.0, colour=0.4)
    found = augment(batch | {"hoi": picture, "obj": picture}, settings, seed=0)
    assert torch.equal(found["hoi"], found["obj"])
    assert (found["obj"] - picture).abs().amax(dim=(1, 2, 3)).min() > 0.01
    turned = augment(batch | {"obj": grey}, settings, seed=0)["obj"]
    torch.testing.assert_close(turned, turned[:, :1].expand(-1, 3, -1, -1))


def test_a_full_turn_of_the_hue_by_steps_is_the_identity_and_thirds_swap_channels() -> None:
    third = torch.tensor([[0.0, 0.0, 0.0, 4 / 3]])  # 120 degrees in quarter turns
    matrix, offset = colour_map(third)
    torch.testing.assert_close(matrix[0], torch.eye(3).roll(1, dims=0))
    torch.testing.assert_close(torch.linalg.matrix_power(matrix[0], 3), torch.eye(3))
    assert offset == 0
    torch.testing.assert_close(colour_map(torch.zeros(1, 4))[0][0], torch.eye(3))
