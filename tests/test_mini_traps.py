"""Every trap is planted, listed, and costs a build what traps.json says, no frame more and no frame less."""

import argparse
import json
import pickle
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import build
from data_prep.hoi4d import Sequence, read_labels
from data_prep.mini import demo
from data_prep.mini.traps import TRAPS, chosen_traps, plant_traps
from data_prep.mini.world import CONTACT_EVENTS, Clip
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.errors import InputError

WORLD = demo.World(clips=40, frames=8, seed=5, traps=frozenset(TRAPS))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("traps") / "demo"
    demo.draw_world(out, WORLD, workers=2)
    return out


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("traps") / "ho3pairs"
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    options = ["--hoi4d", str(tree), "--out", str(out), "--size", "64", "--workers", "2", "--splits", "0.2,0.2"]
    build.run(parser.parse_args(options))
    return out


@pytest.fixture(scope="module")
def record(tree: Path) -> list[dict]:
    return json.loads((tree / "traps.json").read_text())["traps"]


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {clip.sequence: clip for clip in WORLD.all_clips()}


def places(record: list[dict], trap: str) -> list[tuple[str, list[int] | None]]:
    return [(entry["sequence"], entry["frames"]) for entry in record if entry["trap"] == trap]


def infos(built: Path) -> list:
    indices = [ShardIndex(built, split) for split in ("train", "val", "test")]
    return [index.info(i) for index in indices for i in range(len(index))]


def test_the_ledger_holds_what_the_traps_cost_and_nothing_else(built, record, clips):
    expected = Counter()
    lost = set()
    for entry in record:
        if entry["expect"] and entry["frames"] is None:
            expected[entry["sequence"], None, entry["expect"]] += 1
            lost.add(entry["sequence"])
        elif entry["expect"]:
            assert entry["frames"]
            expected.update((entry["sequence"], frame, entry["expect"]) for frame in entry["frames"])
    idle = Counter(
        (name, frame, "no-contact-event")
        for name, clip in clips.items() if name not in lost
        for frame in range(clip.frames) if clip.event(frame) not in CONTACT_EVENTS
    )  # fmt: skip
    drops = [json.loads(line) for line in (built / "dropped.jsonl").read_text().splitlines()]
    found = Counter((drop["sequence"], drop["frame"], drop["reason"]) for drop in drops)
    assert found - expected - idle == Counter()
    assert expected + idle - found == Counter()


def test_every_other_frame_is_a_pair(built, record, clips):
    kept = {(info.sequence, info.frame) for info in infos(built)}
    drops = [json.loads(line) for line in (built / "dropped.jsonl").read_text().splitlines()]
    lost = {drop["sequence"] for drop in drops if drop["frame"] is None}
    given_up = {(drop["sequence"], drop["frame"]) for drop in drops}
    everything = {(name, frame) for name in clips if name not in lost for frame in range(WORLD.frames)}
    assert kept == everything - given_up


def test_every_trap_is_there_once_at_least(record):
    assert {entry["trap"] for entry in record} == set(TRAPS)
    assert {entry["trap"]: entry["expect"] for entry in record} == {trap.name: trap.drop for trap in TRAPS.values()}


def test_layouts_survive_the_traps(built, record, clips):
    """Keypoints that lie are not believed, jittery ones are off by no more than they jitter."""
    by_trap = defaultdict(set)
    for entry in record:
        if entry["sequence"]:
            frames = range(WORLD.frames) if entry["frames"] is None else entry["frames"]
            by_trap[entry["trap"]] |= {(entry["sequence"], frame) for frame in frames}
    refused = by_trap["broken_pickle"] | by_trap["outside_keypoints"] | by_trap["no_pickle"]
    for info in infos(built):
        place = (info.sequence, info.frame)
        assert (info.keypoints is None) == (place in refused)
        assert info.hand_side == clips[info.sequence].side
        joints = clips[info.sequence].grasp(info.frame).joints[:, :2]
        half = (info.crop[2] - info.crop[0]) / 2
        centre = ((joints.min(0) + joints.max(0)) / 2 + 0.5 - info.crop[:2]) / half - 1
        off = np.abs(centre - (info.layout.x, info.layout.y)).max() * half
        assert off < (150 if place in refused else 30 if place in by_trap["jittery_keypoints"] else 0.1)


def test_lists_are_windows_files(tree, clips):
    release, test = (tree / name for name in ("release.txt", "testset.txt"))
    unlisted = [name for name, clip in clips.items() if "unlisted_video" in clip.traps]
    assert release.read_bytes() == "".join(f"{name}\r\n" for name in clips if name not in unlisted).encode()
    lines = test.read_bytes().decode().split("\r\n")
    assert lines[-1] != ""  # no final line end
    assert len(set(lines)) < len(lines)
    assert set(unlisted) < set(lines)
    assert set(lines) & set(release.read_text().split())


def test_masks_lie_where_their_camera_has_them(tree, clips):
    folders = Counter()
    for clip in clips.values():
        if not clip.traps & {"no_2dseg", "unlisted_video"}:
            name = Sequence(tree, clip.sequence).mask_folder.name
            assert name == ("mask" if clip.camera == 1 else "shift_mask")
            folders[name] += 1
    assert len(folders) == 2


def test_one_channel_masks_read_as_the_others(tree, record, clips):
    for trap in ("indexed_mask", "grey_mask"):
        for name, frames in places(record, trap):
            sequence = Sequence(tree, name)
            for frame in frames[:2]:
                raw = cv2.imread(str(sequence.mask(frame)), cv2.IMREAD_UNCHANGED)
                assert raw.ndim == (2 if trap == "grey_mask" else 3)
                labels = read_labels(sequence.mask(frame), sequence.valid)
                x0, y0, x1, y1 = sequence.valid
                drawn = clips[name].frame(frame).hand_mask
                hand = sequence.hand_labels[clips[name].side]
                np.testing.assert_array_equal(labels.at(sequence.valid) == hand, drawn[y0:y1, x0:x1])
                assert labels.box([1]) is not None


def test_a_left_hand_holds_a_bucket_and_no_right_one(tree, record):
    for name, _ in places(record, "left_hand"):
        sequence = Sequence(tree, name)
        assert sequence.category_id == "C8"
        labels = read_labels(sequence.mask(WORLD.frames // 2), sequence.valid)
        assert set(np.unique(labels.values)) == {0, 1, 3, 6}
        assert sequence.hand_pose(WORLD.frames // 2, "right") is None


def test_an_unlabelled_left_hand_stays_in_the_object_picture(built, record, clips):
    for name, _ in places(record, "unlabelled_left_hand"):
        clip = clips[name]
        assert np.abs(clip.background.astype(int) - clip.clean).max() > 40
        assert np.array_equal(clip.frame(0).rgb, clip.background)
        assert any(info.sequence == name for info in infos(built))


def test_pickles_and_poses_have_their_traps(tree, record, clips):
    for name, frames in places(record, "broken_pickle"):
        sequence = Sequence(tree, name)
        kinds = set()
        for frame in frames:
            data = pickle.loads(sequence.hand_pose(frame, clips[name].side).read_bytes())
            kinds |= {"pose"} if data["poseCoeff"].size == 1 else {"nan"} if np.isnan(data["kps2D"]).all() else {"none"}
        assert kinds == {"pose", "nan"}
    for name, frames in places(record, "jittery_keypoints"):
        for frame in frames:
            data = pickle.loads(Sequence(tree, name).hand_pose(frame, clips[name].side).read_bytes())
            off = np.linalg.norm((data["kps2D"] - clips[name].grasp(frame).joints[:, :2]).mean(0))
            assert 8 < off < 22
    for name, frames in places(record, "outside_keypoints"):
        for frame in frames:
            points = pickle.loads(Sequence(tree, name).hand_pose(frame, clips[name].side).read_bytes())["kps2D"]
            assert not ((points >= 0) & (points < (1920, 1080))).all(1).any()
    for folder in ("handpose/refinehandpose_right", "Hand_pose/handpose_right_hand"):
        assert any((tree / folder).glob("ZY*/H*/C*/N*/S*/s*/T*/?.pickle"))
    assert any(tree.glob("*/*/ZY*/H*/C*/N*/S*/s*/T*/?????.pickle"))
    wrong = {name for name, _ in places(record, "objpose_frame_id")}
    padded = Counter()
    for name, clip in clips.items():
        files = sorted((tree / "HOI4D_annotations" / name / "objpose").glob("*.json"))
        ids = [json.loads(path.read_text())["frameId"] == int(path.stem) for path in files]
        assert all(ids) == (name not in wrong)
        padded[all(len(path.stem) == 5 for path in files)] += "unlisted_video" not in clip.traps
    assert len(padded) == 2


@pytest.mark.parametrize("clips", [1, 11, 12, 40, 48, 150, 1000])
def test_traps_are_few_and_the_seeds_own(clips):
    planted = plant_traps(3, clips, TRAPS)
    assert planted == plant_traps(3, clips, TRAPS)
    counts = Counter(name for names in planted for name in names)
    lost = [names for names in planted if any(TRAPS[name].whole for name in names)]
    costly = [names for names in planted if any(TRAPS[name].drop for name in names)]
    assert all(sum(TRAPS[name].drop is not None for name in names) == 1 for names in costly)
    assert all(sum(TRAPS[name].share < 1 for name in names) == 1 for names in lost)
    assert len(lost) <= max(0.055 * clips, 4 if clips >= 40 else clips // 12)
    assert bool(costly) == (clips >= 12)
    if clips >= 40:
        assert set(counts) == {name for name, trap in TRAPS.items() if trap.share}
        assert planted != plant_traps(4, clips, TRAPS)


def test_chosen_traps_and_no_others_are_planted():
    assert plant_traps(0, 100, ()) == [frozenset()] * 100
    names = chosen_traps("schema_b,no_2dseg")
    assert {name for planted in plant_traps(0, 100, names) for name in planted} == {"schema_b", "no_2dseg"}
    assert chosen_traps("none") == frozenset()
    assert chosen_traps("all") == frozenset(TRAPS)
    with pytest.raises(InputError, match=r"shift_maks: .* shift_mask"):
        chosen_traps("schema_b,shift_maks")
