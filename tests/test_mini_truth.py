"""The truth is the distribution the frames are drawn from, told in the words of the layouts fitted to them."""

import argparse
import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

import data_prep.truth
from data_prep import build
from data_prep.hoi4d import Sequence, bounding_box
from data_prep.labels import LabelMap
from data_prep.layout_fit import fit_crop_layout, whole_hand
from data_prep.mini import demo
from data_prep.mini.truth import DRAWS, Silhouettes, Truth, clip_crop, draw_truth, layouts_of
from data_prep.mini.world import Clip
from data_prep.pairing import crop_around
from data_prep.resize import resize_window
from data_prep.truth import write_truth
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.errors import InputError

WORLD = demo.World(clips=4, frames=8, seed=11, split="category")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("truth") / "demo"
    demo.draw_world(out, WORLD, workers=2)
    return out


def run_build(tree: Path, out: Path, *options: str) -> Path:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    words = ["--hoi4d", str(tree), "--out", str(out), "--size", "96", "--workers", "1", *options]
    build.run(parser.parse_args(words))
    return out


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half val, half test, in small shards."""
    return run_build(tree, tmp_path_factory.mktemp("truth") / "a", "--splits", "0.5,0.5", "--samples-per-shard", "9")


@pytest.fixture(scope="module")
def truths() -> list[tuple[Clip, Truth]]:
    """Of a mug, a toy car and a bowl, or whatever else a world begins with."""
    return [(clip, draw_truth(clip)) for clip in demo.World(clips=3, frames=8, seed=11).all_clips()]


def members(tar: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as file:
        for member in file:
            key, _, name = member.name.partition(".")
            found.setdefault(key, {})[name] = file.extractfile(member).read()
    return found


def test_layouts_agree_with_those_fitted_to_painted_hands(truths):
    """Drawn as silhouettes, or painted and fitted: one centre within 1 px of 128, one direction within 3 degrees."""
    angles = []
    for clip, _ in truths:
        crop, rng = clip_crop(clip), np.random.default_rng(1)
        valid = Sequence(Path(), clip.sequence).valid
        for _ in range(12):
            grasp = clip.draw_grasp(rng)
            mask = clip.draw(grasp).hand_mask
            seen = np.zeros_like(mask)
            seen[valid[1] : valid[3], valid[0] : valid[2]] = mask[valid[1] : valid[3], valid[0] : valid[2]]
            small = resize_window(seen.view(np.uint8), crop, 128).view(bool)
            fitted, _ = fit_crop_layout(
                small, whole_hand(LabelMap.whole(seen.view(np.uint8)), 1), grasp.joints[:, :2], crop
            )
            (drawn,) = _truth_of(clip, [grasp], crop)
            assert abs(drawn[0] - fitted.a) < 1e-3
            assert np.hypot(drawn[1] - fitted.x, drawn[2] - fitted.y) * 64 < 1
            turn = np.arctan2(drawn[4], drawn[3]) - fitted.theta
            angles.append(abs(np.degrees((turn + np.pi) % (2 * np.pi) - np.pi)))
    assert np.median(angles) < 1
    assert np.quantile(angles, 0.95) < 3


def _truth_of(clip: Clip, grasps: list, crop: tuple) -> np.ndarray:
    painter = Silhouettes(clip)
    keypoints = np.array([grasp.joints[:, :2] for grasp in grasps])
    return layouts_of(keypoints, np.array([painter.centroid(grasp) for grasp in grasps]), crop)


def test_rules_have_their_shares(truths):
    for _, truth in truths:
        assert truth.layouts.shape == (DRAWS, 5)
        assert sum(truth.shares.values()) == pytest.approx(1)
        counts = [truth.rules.count(rule) for rule in truth.shares]
        assert sum(counts) == DRAWS
        assert chisquare(counts, [share * DRAWS for share in truth.shares.values()]).pvalue > 1e-3


def test_draws_are_layouts_of_the_crop(truths):
    for clip, truth in truths:
        assert truth.layouts.dtype == np.float32
        assert np.isfinite(truth.layouts).all()
        np.testing.assert_allclose(np.hypot(truth.layouts[:, 3], truth.layouts[:, 4]), 1, atol=1e-5)
        assert len(np.unique(truth.layouts, axis=0)) == DRAWS
        x0, y0, x1, y1 = truth.crop
        assert truth.crop == crop_around(bounding_box(clip.object_mask), Sequence(Path(), clip.sequence).valid)
        np.testing.assert_array_equal(truth.clean, clip.clean[y0:y1, x0:x1])


def test_frames_are_draws_from_the_same_distribution():
    """A long clip's own layouts and its truth: no dimension tells them apart."""
    clip = Clip(WORLD.seed, 0, 600)
    truth, crop = draw_truth(clip), clip_crop(clip)
    frames = _truth_of(clip, [clip.grasp(frame) for frame in clip.contact_frames[::2]], crop)
    for axis in range(5):
        assert kstest(frames[:, axis], truth.layouts[:, axis]).pvalue > 1e-3
    assert len(np.unique(np.concatenate([frames, truth.layouts]), axis=0)) == len(frames) + DRAWS  # none is among them


def test_the_files_hold_the_truth(tree):
    for clip in WORLD.all_clips()[:2]:
        truth = draw_truth(clip)
        stem = tree / "truth" / clip.sequence.replace("/", "_")
        np.testing.assert_array_equal(np.load(f"{stem}.layouts.npy"), truth.layouts)
        np.testing.assert_array_equal(cv2.imread(f"{stem}.clean.png")[..., ::-1], truth.clean)
        record = json.loads(Path(f"{stem}.rules.json").read_text())
        assert record.pop("rule") == truth.rules
        assert record == {
            "crop": list(truth.crop), "category": "Kettle", "instance": f"N{clip.instance:02d}",
            "scene": clip.scene, "split": "category", "rules": truth.shares,
        }  # fmt: skip
    assert len(list((tree / "truth").iterdir())) == 3 * WORLD.clips


def test_build_carries_the_truth_of_each_sample(tree, built):
    manifest = json.loads((built / "manifest.json").read_text())
    shards = {shard["name"]: shard for shard in manifest["shards"]}
    assert {shard["split"] for shard in shards.values()} == {"val", "test"}
    assert [entry["name"] for entry in manifest["truth"]] == [f"truth-{name}" for name in shards]
    for entry in manifest["truth"]:
        tar = built / entry["name"]
        shard = members(built / entry["name"].removeprefix("truth-"))
        truth = members(tar)
        assert (entry["count"], entry["bytes"]) == (len(shard), tar.stat().st_size)
        assert list(truth) == list(shard)
        for key, record in truth.items():
            assert set(record) == {"clean.png", "layouts.npy", "rules.json"}
            info = json.loads(shard[key]["json"])
            assert np.load(io.BytesIO(record["layouts.npy"])).shape == (DRAWS, 5)
            clean = cv2.imdecode(np.frombuffer(record["clean.png"], np.uint8), cv2.IMREAD_COLOR)
            obj = cv2.imdecode(np.frombuffer(shard[key]["obj.jpg"], np.uint8), cv2.IMREAD_COLOR)
            assert clean.shape == obj.shape == (96, 96, 3)
            assert np.abs(clean.astype(int) - obj).mean() < 6  # the hand has been removed well
            assert json.loads(record["rules.json"])["crop"] == info["crop"]


def test_no_clip_is_read_twice(tree, built, tmp_path, monkeypatch):
    """Else a shuffled shard would need all clips in memory, or much time."""
    read, read_clip = [], data_prep.truth._read_clip
    monkeypatch.setattr(data_prep.truth, "_read_clip", lambda *words: read.append(words) or read_clip(*words))
    shards = json.loads((built / "manifest.json").read_text())["shards"]
    for shard in shards:
        (tmp_path / shard["name"]).symlink_to(built / shard["name"])
    written = write_truth(tmp_path, shards, tree, 96)
    assert len(read) == len(set(read)) == WORLD.clips
    for entry in written:
        assert (tmp_path / entry["name"]).read_bytes() == (built / entry["name"]).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_layouts_follow_the_samples_crop(tree, built, tmp_path):
    """Where a sample's crop is not its clip's, its layouts lie where they lay in the frame."""
    path = next((tree / "truth").glob("*.rules.json"))
    key, (x0, y0, x1, y1) = path.name.partition(".")[0], json.loads(path.read_text())["crop"]
    other = (x0 + 40, y0 - 10, x1 - 40, y1 - 90)
    record = json.loads(next(iter(members(built / "val-000000.tar").values()))["json"])
    record |= {"key": f"{key}_f00004", "sequence": key.replace("_", "/"), "crop": other}
    with tarfile.open(tmp_path / "val-000000.tar", "w") as tar:
        data = json.dumps(record).encode()
        member = tarfile.TarInfo(f"{key}_f00004.json")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    write_truth(tmp_path, [{"name": "val-000000.tar", "split": "val", "count": 1}], tree, 96)
    (found,) = members(tmp_path / "truth-val-000000.tar").values()
    layouts, original = np.load(io.BytesIO(found["layouts.npy"])), np.load(tree / "truth" / f"{key}.layouts.npy")
    for axis in (0, 1):
        low, side = (x0, y0)[axis], x1 - x0
        in_frame = (original[:, 1 + axis] + 1) / 2 * side + low
        moved = (layouts[:, 1 + axis] + 1) / 2 * (side - 80) + other[axis]
        np.testing.assert_allclose(moved, in_frame, atol=0.01)
    np.testing.assert_allclose(layouts[:, 0] ** 2 * (side - 80), original[:, 0] ** 2 * side, rtol=1e-5)
    np.testing.assert_array_equal(layouts[:, 3:], original[:, 3:])
    picture = cv2.imdecode(np.frombuffer(found["clean.png"], np.uint8), cv2.IMREAD_COLOR)
    clean = cv2.imread(str(tree / "truth" / f"{key}.clean.png"))
    window = np.vstack([clean[:1]] * 10 + [clean[:-90]])[:, 40:-40]  # above it, its border is repeated
    np.testing.assert_allclose(picture, cv2.resize(window, (96, 96), interpolation=cv2.INTER_AREA), atol=1)


def test_training_knows_nothing_of_it_and_the_bytes_are_the_inputs(tree, built, tmp_path):
    again = run_build(tree, tmp_path / "b", "--splits", "0.5,0.5", "--samples-per-shard", "9", "--workers", "2")
    for path in built.glob("*.tar"):
        assert (again / path.name).read_bytes() == path.read_bytes()
    trained = run_build(tree, tmp_path / "c", "--splits", "0,0")
    assert not list(trained.glob("truth-*"))
    names = {name for record in members(trained / "train-000000.tar").values() for name in record}
    assert names == {"hoi.jpg", "obj.jpg", "hand.png", "object.png", "json"}
    tested = run_build(tree, tmp_path / "d", "--splits", "0,1")
    assert len(ShardIndex(tested, "test")) == len(ShardIndex(trained, "train"))
    assert [path.name for path in tested.glob("*.tar")].count("truth-test-000000.tar") == 1


def test_a_truth_with_a_clip_missing_is_named(tree, tmp_path):
    copy = tmp_path / "tree"
    copy.mkdir()
    for path in tree.iterdir():
        if path.name != "truth":
            (copy / path.name).symlink_to(path)
    (copy / "truth").mkdir()
    with pytest.raises(InputError, match="draw the demo again"):
        run_build(copy, tmp_path / "out", "--splits", "0,1")
