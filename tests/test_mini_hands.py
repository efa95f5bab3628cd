from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.stats import chi2

from data_prep.mini.affordance import FINGERS, RULES, SINK_MM, THUMB, Grasp, Side, draw_grasp, mirrored
from data_prep.mini.arm import COARSE, LAYER, SKIN_TONES, Skin, draw_skin, paint_arm
from data_prep.mini.hand import joints_mm
from data_prep.mini.objects import CATEGORIES, Thing, draw_thing
from data_prep.mini.silhouette import silhouette
from data_prep.mini.view import SIZE, View, draw_view
from data_prep.mini.world import SCALE

TIPS = [4, 8, 12, 16, 20]
NUMBERS = {name: number for number, name in CATEGORIES.items()}


def a_scene(category: str, rng: np.random.Generator) -> tuple[Thing, View, Skin]:
    view = draw_view(rng)
    return draw_thing(5, NUMBERS[category], 1 + int(rng.integers(45)), rng, view), view, draw_skin(rng, view.tint)


def some_grasps(category: str, count: int, seed: int = 0, side: Side = "right") -> list[tuple[Thing, Grasp]]:
    rng = np.random.default_rng(seed)
    thing, view, _ = a_scene(category, rng)
    return [(thing, draw_grasp(thing, view, SCALE, rng, side=side)) for _ in range(count)]


def drawn_back(grasp: Grasp, away: float) -> Grasp:
    """The hand moved back along its forearm by so many pixels; away from the object, nothing hides its digits."""
    back = away * np.array([np.cos(grasp.forearm), np.sin(grasp.forearm), 0])
    return replace(grasp, joints=grasp.joints + back, under=frozenset() if away else grasp.under)


def own_coordinates(thing: Thing, point: np.ndarray) -> tuple[float, float]:
    """u and v of a pixel: the inverse of `Thing.point`."""
    x, y = (point - thing.centre) / thing.size / [1, thing.squash]
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return float(x * cos + y * sin), float(y * cos - x * sin)


def test_every_category_has_rules_whose_shares_sum_to_one():
    assert set(RULES) == set(CATEGORIES.values())
    for rules in RULES.values():
        assert sum(rule.share for rule in rules) == pytest.approx(1)


@pytest.mark.parametrize("category", list(RULES))
def test_draws_follow_the_stated_shares(category):
    draws = [grasp.rule for _, grasp in some_grasps(category, 5000)]
    expected = np.array([5000 * rule.share for rule in RULES[category]])
    counts = np.array([draws.count(rule.name) for rule in RULES[category]])
    assert chi2.sf(float(np.sum((counts - expected) ** 2 / expected)), len(expected) - 1) > 1e-4


def test_a_draw_belongs_to_its_generator():
    (_, first), (_, second) = some_grasps("Mug", 1)[0], some_grasps("Mug", 1)[0]
    np.testing.assert_array_equal(first.joints, second.joints)
    assert first.rule == second.rule
    assert first.under == second.under


def test_hands_are_near_what_they_hold():
    for category in RULES:
        for thing, grasp in some_grasps(category, 60):
            reach = np.linalg.norm(grasp.joints[:, :2] - thing.centre, axis=1).min()
            assert reach < 1.7 * thing.size, (category, grasp.rule)


def test_nobody_holds_a_knife_by_its_blade():
    for thing, grasp in some_grasps("Knife", 400):
        knuckles = grasp.joints[[5, 6, 9, 10], :2].mean(axis=0)
        assert own_coordinates(thing, knuckles)[0] > 0.1, grasp.rule


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_thumb_is_on_its_side(side):
    for category in RULES:
        for _, grasp in some_grasps(category, 40, side=side):
            forward = -np.array([np.cos(grasp.forearm), np.sin(grasp.forearm)])
            thumb, little = (grasp.joints[j, :2] - grasp.joints[0, :2] for j in (3, 18))
            # seen from its back with the fingers up, a right hand's thumb is on the left: +y points down
            turn = [float(forward[0] * v[1] - forward[1] * v[0]) for v in (thumb, little)]
            assert (turn[0] < turn[1]) == (side == "right")


def test_digits_behind_the_object_are_lowest():
    for category in RULES:
        for _, grasp in some_grasps(category, 60):
            if grasp.under:
                heights = grasp.joints[TIPS, 2]
                under = sorted(grasp.under)
                front = sorted(set(range(5)) - grasp.under)
                assert heights[under].mean() < heights[front].mean()
    assert SINK_MM[0] == 0
    assert {rule.under for rules in RULES.values() for rule in rules} >= {FINGERS, THUMB}


def test_a_left_hand_is_a_mirrored_right_one():
    rng = np.random.default_rng(3)
    for category in RULES:
        thing, view, skin = a_scene(category, rng)
        twin = replace(thing, centre=np.array([SIZE[0] - thing.centre[0], thing.centre[1]]), angle=np.pi - thing.angle)
        left = draw_grasp(thing, view, SCALE, np.random.default_rng(8), side="left")
        right = draw_grasp(twin, view, SCALE, np.random.default_rng(8))
        assert (left.side, right.side) == ("left", "right")
        np.testing.assert_allclose(left.joints, right.joints * [-1, 1, 1] + [SIZE[0], 0, 0], atol=1e-9)
        np.testing.assert_allclose(mirrored(left).joints, right.joints, atol=1e-9)
    light = np.array([0.3, -0.4, 0.87], np.float32)
    there, here = paint_arm(left, skin, light), paint_arm(right, skin, light * np.array([-1, 1, 1], np.float32))
    np.testing.assert_array_equal(there.alpha, here.alpha[:, ::-1])
    np.testing.assert_array_equal(there.rgb, here.rgb[..., ::-1])


@pytest.mark.parametrize("category", list(RULES))
def test_a_crop_shows_all_that_decides_about_a_layout(category):
    rng = np.random.default_rng(4)
    thing, view, _ = a_scene(category, rng)
    flat = replace(view, nearness=0.0)
    larger = replace(thing, size=1.2 * thing.size)
    for seed in range(20):
        one, other = (draw_grasp(which, flat, SCALE, np.random.default_rng(seed)) for which in (thing, larger))
        assert other.scale == pytest.approx(1.2 * one.scale)
        beside, enlarged = one.joints[:, :2] - thing.centre, other.joints[:, :2] - thing.centre
        np.testing.assert_allclose(enlarged, 1.2 * beside, atol=0.2 * 12)  # aim wavers by a few pixels, 3 σ or more


def painted_mask(grasp: Grasp, skin: Skin, light: np.ndarray) -> np.ndarray:
    arm = paint_arm(grasp, skin, light)
    x0, y0, x1, y1 = arm.window
    layer = np.zeros((LAYER[1], LAYER[0]), np.float32)
    layer[y0:y1, x0:x1] = arm.alpha
    return cv2.resize(layer, SIZE, interpolation=cv2.INTER_LINEAR) > 0.5


def centroid_angle(mask: np.ndarray, grasp: Grasp, pixel: int) -> float:
    points = grasp.joints[:, :2]
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    y, x = np.nonzero(mask)
    return float(np.arctan2((y.mean() + 0.5) * pixel - centre[1], (x.mean() + 0.5) * pixel - centre[0]))


def test_hands_at_the_border_and_beyond_are_painted():
    rng = np.random.default_rng(2)
    thing, view, skin = a_scene("Mug", rng)
    for centre in ((20.0, 500.0), (1900.0, 900.0), (900.0, 20.0), (960.0, 1070.0)):
        for away in (0.0, 400.0):
            grasp = drawn_back(draw_grasp(replace(thing, centre=np.array(centre)), view, SCALE, rng), away)
            assert np.isfinite(paint_arm(grasp, skin, view.light).rgb).all()


def test_silhouettes_agree_with_painted_arms():
    rng = np.random.default_rng(11)
    off, overlaps = [], []
    for index in range(84):
        thing, view, skin = a_scene(list(RULES)[index % len(RULES)], rng)
        away = 230.0 if index % 8 == 0 else 0.0
        grasp = drawn_back(draw_grasp(thing, view, SCALE, rng, "left" if index % 5 == 0 else "right"), away)
        mask = painted_mask(grasp, skin, view.light)
        front, under = silhouette(grasp, skin)
        assert front.shape == under.shape == (135, 240)
        assert not (front & under).any()
        coarse = mask.reshape(135, 8, 240, 8).mean(axis=(1, 3)) > 0.5
        drawn = front | under
        overlaps.append((coarse & drawn).sum() / (coarse | drawn).sum())
        edge = cv2.morphologyEx(coarse.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert ((coarse ^ drawn) & ~edge).sum() < 0.005 * coarse.sum()
        turn = centroid_angle(mask, grasp, 1) - centroid_angle(drawn, grasp, 8)
        off.append(abs(np.degrees((turn + np.pi) % (2 * np.pi) - np.pi)))
    assert np.quantile(off, 0.95) < 1.5
    assert min(overlaps) > 0.93


def test_layers_are_in_range_and_only_under_digits_are_under():
    rng = np.random.default_rng(4)
    for category in RULES:
        thing, view, skin = a_scene(category, rng)
        grasp = draw_grasp(thing, view, SCALE, rng)
        arm = paint_arm(grasp, skin, view.light)
        x0, y0, x1, y1 = arm.window
        assert 0 <= x0 < x1 <= LAYER[0]
        assert 0 <= y0 < y1 <= LAYER[1]
        assert arm.rgb.shape == (3, y1 - y0, x1 - x0)
        assert arm.alpha.shape == arm.under.shape == arm.rgb.shape[1:]
        assert {layer.dtype for layer in (arm.rgb, arm.alpha, arm.under)} == {np.dtype(np.float32)}
        for layer, high in ((arm.rgb, 255), (arm.alpha, 1), (arm.under, 1)):
            assert layer.min() >= 0
            assert layer.max() <= high + 1e-3
        assert (arm.under <= arm.alpha + 1e-3).all()
        assert (arm.under.max() > 0.9) == bool(grasp.under)
        front = paint_arm(replace(grasp, under=frozenset()), skin, view.light)
        assert front.under.max() == 0


def test_a_missing_digit_is_not_painted():
    rng = np.random.default_rng(6)
    thing, view, skin = a_scene("Bowl", rng)
    grasp = replace(draw_grasp(thing, view, SCALE, rng), roll=0.0, under=frozenset())
    stretched = replace(grasp.grip, flexion=np.zeros((4, 3)), fan=np.radians([-12.0, -2.0, 8.0, 18.0]))
    grasp = replace(grasp, grip=stretched)
    grasp = replace(grasp, joints=grasp.pose.place(joints_mm(stretched)))
    whole = paint_arm(grasp, skin, view.light).alpha
    for digit, tip in enumerate(TIPS):
        arm = paint_arm(grasp, skin, view.light, frozenset({digit}))
        x, y = (grasp.joints[tip, :2] / COARSE - arm.window[:2]).astype(int)
        outside = not (0 <= y < arm.alpha.shape[0] and 0 <= x < arm.alpha.shape[1])
        assert outside or arm.alpha[y, x] < 0.5
        assert arm.alpha.sum() < whole.sum()


def test_six_skin_tones_and_both_kinds_of_arm():
    rng = np.random.default_rng(0)
    skins = [draw_skin(rng, np.ones(3, np.float32)) for _ in range(200)]
    assert {tuple(skin.tone) for skin in skins} == {tuple(tone) for tone in SKIN_TONES}
    assert 0.4 < np.mean([skin.sleeve is not None for skin in skins]) < 0.8
