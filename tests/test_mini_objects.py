"""The mini world's objects, tables and clutter obey the geometry that hands and masks rely on."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from data_prep.mini import clutter
from data_prep.mini.canvas import lay
from data_prep.mini.clutter import draw_clutter
from data_prep.mini.objects import CATEGORIES, INSTANCES, Painted, Thing, draw_looks, draw_thing, paint_thing
from data_prep.mini.table import draw_table
from data_prep.mini.view import SIZE, View, draw_view

IDS = {name: number for number, name in CATEGORIES.items()}


def a_thing(name: str, instance: int = 1, seed: int = 0) -> tuple[Thing, View]:
    rng = np.random.default_rng(seed)
    view = draw_view(rng)
    return draw_thing(3, IDS[name], instance, rng, view), view


def at(painted: Painted, layer: np.ndarray, point: np.ndarray) -> float:
    x, y = np.floor(point).astype(int) - (painted.left, painted.top)
    return float(layer[y, x])


@pytest.mark.parametrize("name", IDS)
def test_a_painted_object_is_well_formed(name):
    for instance in (1, 17, INSTANCES):
        thing, view = a_thing(name, instance, seed=instance)
        painted = paint_thing(thing, view)
        assert painted.rgb.dtype == np.uint8
        assert {layer.dtype for layer in (painted.cover, painted.handle, painted.shadow)} == {np.dtype("f4")}
        assert painted.rgb.shape == (*painted.cover.shape, 3)
        assert painted.handle.shape == painted.shadow.shape == painted.cover.shape
        for layer in (painted.cover, painted.handle, painted.shadow):
            assert layer.min() >= 0
            assert layer.max() <= 1.0001
        assert (painted.rgb <= 255 * painted.cover[..., None] + 1).all()  # premultiplied
        assert (painted.handle <= painted.cover).all()
        assert painted.handle.any() == (name in ("Mug", "Kettle", "Bucket"))
        assert at(painted, painted.cover, thing.centre) > 0.99
        edge = np.concatenate([painted.cover[0], painted.cover[-1], painted.cover[:, 0], painted.cover[:, -1]])
        assert edge.max() == 0, "the canvas cuts the object"


@pytest.mark.parametrize(
    ("name", "u", "v"), [("Mug", 1.39, 0), ("Kettle", 1.6, 0), ("Bucket", 0, 0), ("Bucket", 0, 0.4)]
)
def test_the_handle_lies_where_hands_look_for_it(name, u, v):
    for instance in range(1, 13):
        thing, view = a_thing(name, instance, seed=instance)
        painted = paint_thing(thing, view)
        assert at(painted, painted.handle, thing.point(u, v)) > 0.9, instance
        assert at(painted, painted.handle, thing.point(-0.8, 0.2)) == 0


def test_one_sees_through_a_kettles_loop():
    for instance in range(1, 13):
        thing, view = a_thing("Kettle", instance, seed=instance)
        painted = paint_thing(thing, view)
        assert at(painted, painted.cover, thing.point(1.36, 0)) < 0.05, instance
        assert at(painted, painted.cover, thing.point(1.6, 0.2)) > 0.95


@pytest.mark.parametrize(
    ("name", "u"), [("Knife", -0.9), ("Knife", 0.9), ("Bottle", -0.95), ("Bottle", 0.95), ("ToyCar", 0.8)]
)
def test_long_objects_reach_from_end_to_end(name, u):
    for instance in range(1, 9):
        thing, view = a_thing(name, instance, seed=instance)
        painted = paint_thing(thing, view)
        inside = max(at(painted, painted.cover, thing.point(u, v)) for v in np.linspace(-0.1, 0.1, 9))
        assert inside > 0.95
        assert at(painted, painted.cover, thing.point(1.45 * np.sign(u), 0)) == 0


def test_a_bowl_is_symmetric_and_foreshortened():
    thing, view = a_thing("Bowl")
    thing = replace(thing, centre=np.array([900.0, 500.0]))
    cover = paint_thing(thing, view).cover
    assert np.abs(cover - cover[:, ::-1]).max() < 1e-3
    columns, rows = np.flatnonzero((cover > 0.5).any(axis=0)), np.flatnonzero((cover > 0.5).any(axis=1))
    assert len(columns) == pytest.approx(2 * thing.size, abs=2)
    assert 2 * thing.size * view.squash <= len(rows) < 2.7 * thing.size * view.squash


def test_looks_belong_to_the_instance_and_place_to_the_clip():
    one, view = a_thing("Mug", 5, seed=1)
    other = draw_thing(3, IDS["Mug"], 5, np.random.default_rng(2), view)
    assert np.array_equal(one.shape, other.shape)
    assert np.array_equal(one.colours, other.colours)
    assert not np.array_equal(one.centre, other.centre)
    moved = replace(one, centre=one.centre + np.array([40, -23]))
    first, second = paint_thing(one, view), paint_thing(moved, view)
    assert np.abs(first.rgb.astype(int) - second.rgb).max() <= 1
    assert (second.left - first.left, second.top - first.top) == (40, -23)


@pytest.mark.parametrize("name", IDS)
def test_instances_differ(name):
    looks = [np.concatenate([part.ravel() for part in draw_looks(3, name, k)]) for k in range(1, INSTANCES + 1)]
    assert len({look.tobytes() for look in looks}) == INSTANCES
    thing, view = a_thing(name)
    pictures = []
    for instance in range(1, 9):
        shape, colours = draw_looks(3, name, instance)
        painted = paint_thing(replace(thing, shape=shape, colours=colours), view)
        pictures.append(painted.rgb.astype(int))
    for k, picture in enumerate(pictures):
        assert all(np.abs(picture - other).max() > 40 for other in pictures[:k])


def test_lower_things_are_larger():
    view = draw_view(np.random.default_rng(0))
    assert view.magnification(100) < 1 < view.magnification(900)
    sizes = [
        (thing.centre[1], thing.size)
        for thing in (draw_thing(3, 2, 1, np.random.default_rng(seed), view) for seed in range(200))
    ]
    rows, pixels = np.array(sizes).T
    assert np.corrcoef(rows, pixels)[0, 1] > 0.3


def whitened(painted: Painted) -> Painted:
    """The same in white, without its shadow."""
    white = cv2.merge([cv2.convertScaleAbs(painted.cover, alpha=255)] * 3)
    return replace(painted, rgb=white, shadow=np.zeros_like(painted.shadow))


@pytest.mark.parametrize("name", ["Mug", "Bottle", "Kettle"])
def test_clutter_keeps_clear_of_the_object(name):
    nearby = []
    for seed in range(5):
        thing, view = a_thing(name, seed + 1, seed)
        own, rng = paint_thing(thing, view), np.random.default_rng(seed)
        covered = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        lay(covered, whitened(own))
        others = draw_clutter(3, thing, view, rng, "clutter")
        assert 1 <= len(others) <= 6
        for other in others:
            alone = np.zeros_like(covered)
            lay(alone, whitened(other))
            assert not ((alone > 2) & (covered > 2)).any()
            rows, columns = np.nonzero(alone[..., 0] > 128)
            nearby.append(np.abs(np.stack([columns, rows], -1) - thing.centre).max(axis=1).min() < 2.6 * thing.size)
        assert len(draw_clutter(3, thing, view, rng, "alone")) <= 1
    assert np.mean(nearby) > 0.3


def test_what_lies_about_is_grasped_in_no_clip(monkeypatch):
    drawn = []

    def spy(thing, view):
        drawn.append(thing)
        return paint_thing(thing, view)

    monkeypatch.setattr(clutter, "paint_thing", spy)
    for seed in range(6):
        thing, view = a_thing("Mug", 1, seed)
        draw_clutter(3, thing, view, np.random.default_rng(seed), "clutter")
    grasped = {draw_looks(3, name, k)[0].tobytes() for name in IDS for k in range(1, INSTANCES + 1)}
    assert len(drawn) > 12
    assert not any(thing.shape.tobytes() in grasped for thing in drawn)
    assert "Kettle" not in {thing.category for thing in drawn}


def test_scenery_is_deterministic():
    thing, view = a_thing("Bowl", 4, 4)

    def scenery() -> np.ndarray:
        rng = np.random.default_rng(9)
        picture = draw_table(view, rng)
        for painted in (*draw_clutter(3, thing, view, rng, "clutter"), paint_thing(thing, view)):
            lay(picture, painted)
        return picture

    picture = scenery()
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, scenery())


def test_a_shadow_falls_away_from_the_light():
    thing, view = a_thing("Mug")
    for right in (-0.6, 0.6):
        lit = replace(view, light=np.array([right, 0.0, 0.8], np.float32))
        painted = paint_thing(thing, lit)
        columns = np.arange(painted.shadow.shape[1]) + painted.left + 0.5 - thing.centre[0]
        assert np.sign((painted.shadow.sum(axis=0) * columns).sum()) == -np.sign(right)
