"""The mini world keeps HOI4D's formats, its own rules and its seed."""

import argparse
import json
import pickle
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data_prep.mini import demo
from data_prep.mini.affordance import RULES, draw_grasp
from data_prep.mini.hoi4d_files import action_record, video_path, write_clip
from data_prep.mini.objects import CATEGORIES, INSTANCES
from data_prep.mini.world import BORDERS, CONTACT_EVENTS, MAX_CLIPS, Clip
from hoi_lightning.errors import InputError

SEED, CLIPS, FRAMES = 3, 12, 8
PALETTE = {0x000000, 0x800000, 0x008000}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo, drawn by two processes."""
    out = tmp_path_factory.mktemp("mini") / "demo"
    demo.draw_world(out, CLIPS, FRAMES, SEED, workers=2)
    return out


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """The clips the tree was drawn from."""
    return [Clip(SEED, index, FRAMES) for index in range(CLIPS)]


def masks_of(tree: Path, clip: Clip) -> Path:
    """Folder of a clip's masks."""
    return tree / "HOI4D_annotations" / clip.sequence / "2Dseg" / ("mask" if clip.camera == 1 else "shift_mask")


def decode(path: Path) -> list[np.ndarray]:
    """All frames of a video, RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes_whoever_draws(tree: Path, clips: list[Clip], tmp_path: Path) -> None:
    index = next(i for i in range(CLIPS) if i not in demo.plant_traps(CLIPS))
    write_clip(tmp_path, Clip(SEED, index, FRAMES))
    again = files_of(tmp_path)
    assert len(again) >= 2 * FRAMES
    for name, content in again.items():
        assert (tree / name).read_bytes() == content, name


def test_other_seed_other_world(clips: list[Clip]) -> None:
    assert not np.array_equal(Clip(SEED + 1, 0, FRAMES).clean, clips[0].clean)


def test_rerun_goes_on_where_it_was(tree: Path, clips: list[Clip]) -> None:
    before = files_of(tree)
    video = video_path(tree, clips[1].sequence)
    video.unlink()
    (tree / "demo.json").rename(tree / "demo.part.json")
    demo.draw_world(tree, CLIPS, FRAMES, SEED, workers=1)
    assert files_of(tree) == before


def test_other_settings_are_refused(tree: Path) -> None:
    with pytest.raises(InputError, match="OUT"):
        demo.draw_world(tree, CLIPS, FRAMES, SEED + 1, workers=1)


@pytest.mark.parametrize("wrong", [["--frames", "3"], ["--clips", "0"], ["--seed", "-1"], ["--workers", "0"]])
def test_numbers_out_of_range_are_named(wrong: list[str], tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(InputError, match=wrong[0]):
        demo.run(parser.parse_args([str(tmp_path), *wrong]))


def test_release_has_crlf_and_every_sequence_once(tree: Path, clips: list[Clip]) -> None:
    lines = (tree / "release.txt").read_bytes().split(b"\r\n")
    assert lines[-1] == b""
    assert [line.decode() for line in lines[:-1]] == [clip.sequence for clip in clips]
    names = [Clip(SEED, index, FRAMES).sequence for index in [*range(300), *range(384, MAX_CLIPS, 96)]]
    assert len(set(names)) == len(names)


def test_every_instance_is_drawn_before_any_repeats() -> None:
    total = len(CATEGORIES) * INSTANCES
    drawn = {(c.category, c.instance) for c in (Clip(SEED, index, FRAMES) for index in range(total))}
    assert len(drawn) == total


def test_instances_keep_their_looks(clips: list[Clip]) -> None:
    again = Clip(SEED, len(CATEGORIES) * INSTANCES, FRAMES)
    assert (again.category, again.instance) == (clips[0].category, clips[0].instance)
    assert np.array_equal(again.thing.shape, clips[0].thing.shape)
    assert np.array_equal(again.thing.colours, clips[0].thing.colours)
    assert not np.array_equal(again.thing.centre, clips[0].thing.centre)


def test_masks_and_video_are_hoi4d(tree: Path, clips: list[Clip]) -> None:
    traps = demo.plant_traps(CLIPS)
    for index, clip in enumerate(clips):
        if traps.get(index) in ("truncated_mp4", "no_2dseg") or index % 4:
            continue
        frames = decode(video_path(tree, clip.sequence))
        names = sorted(p.name for p in masks_of(tree, clip).iterdir())
        assert len(frames) == FRAMES
        assert names == [f"{i:05d}.png" for i in range(FRAMES)]
        columns, rows = BORDERS[clip.camera]
        for number in (0, FRAMES // 2):
            mask = cv2.imread(str(masks_of(tree, clip) / names[number]), cv2.IMREAD_UNCHANGED)
            assert mask.shape == frames[number].shape == (1080, 1920, 3)
            codes = set(np.unique(mask[..., ::-1].astype(np.int32) @ [65536, 256, 1]).tolist())
            assert codes <= PALETTE
            assert (0x008000 in codes) == (number > 0)
            for picture in (mask, frames[number]):
                # H.264 smears a shade over the border's last columns
                assert picture[:, : max(columns - 2, 0)].max(initial=0) <= 8
                assert picture[1080 - max(rows - 2, 0) :].max(initial=0) <= 8
            assert frames[number][:1040, 20:].min(axis=(0, 1)).max() > 0


def test_video_shows_what_was_drawn(tree: Path, clips: list[Clip]) -> None:
    clip = clips[0]
    shown = decode(video_path(tree, clip.sequence))
    for number in (0, 5):
        assert np.abs(shown[number].astype(int) - clip.frame(number).rgb).mean() < 4


def test_hand_is_drawn_where_its_joints_are(clips: list[Clip]) -> None:
    for clip in clips[:5]:
        frame = clip.frame(FRAMES // 2)
        keypoints, hand = frame.keypoints, frame.hand_mask
        assert keypoints is not None
        near = cv2.dilate(hand.astype(np.uint8), np.ones((5, 5), np.uint8))
        inside = keypoints[((keypoints >= 0) & (keypoints < (1920, 1080))).all(axis=1)].astype(int)
        assert near[inside[:, 1], inside[:, 0]].all()
        for tip in (4, 8, 12, 16, 20):  # the hand ends just beyond a stretched finger
            bone = keypoints[tip] - keypoints[tip - 1]
            beyond = keypoints[tip] + bone / np.linalg.norm(bone) * 22
            others = np.delete(keypoints, [tip], axis=0)
            if (
                np.linalg.norm(others - beyond, axis=1).min() > 45
                and (beyond > 0).all()
                and (beyond < (1920, 1080)).all()
            ):
                assert not hand[int(beyond[1]), int(beyond[0])]


def test_contact_frames_touch_and_others_do_not(clips: list[Clip]) -> None:
    for clip in clips[:5]:
        for name, begin, _ in clip.events:
            frame = clip.frame(begin)
            if name == "rest":
                assert frame.window is None
                assert np.array_equal(frame.rgb, clip.clean)
            if name == "Grasp":
                covered = (frame.hand_mask & clip.object_mask).sum() / clip.object_mask.sum()
                assert 0.01 < covered < 0.9


def test_forearm_runs_out_of_the_crop(clips: list[Clip]) -> None:
    for clip in clips[:5]:
        mask = clip.frame(FRAMES // 2).hand_mask
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        left, bottom = BORDERS[clip.camera]
        assert columns[0] == left or columns[-1] == 1919 or rows[0] == 0 or rows[-1] == 1079 - bottom


def test_right_hand_has_its_thumb_on_the_left(clips: list[Clip]) -> None:
    for clip in clips:
        grasp = clip.grasp(FRAMES // 2)
        assert grasp is not None
        points = grasp.joints[:, :2]
        ahead, thumb = points[9] - points[0], points[3] - points[0]
        assert ahead[0] * thumb[1] - ahead[1] * thumb[0] < 0  # +y down: left of the fingers, seen from above


def test_pickles_hold_the_keypoints(tree: Path, clips: list[Clip]) -> None:
    clip = clips[0]
    folder = tree / "handpose/refinehandpose_right" / clip.sequence
    with_hand = [i for i in range(FRAMES) if clip.event(i) != "rest"]
    assert sorted(int(p.stem) for p in folder.iterdir()) == with_hand
    for number in with_hand:
        record = pickle.loads((folder / f"{number}.pickle").read_bytes())
        assert {k: v.shape for k, v in record.items()} == {
            "poseCoeff": (48,), "beta": (10,), "trans": (3,), "kps2D": (21, 2),
        }  # fmt: skip
        grasp = clip.grasp(number)
        assert grasp is not None
        assert np.allclose(record["kps2D"], grasp.joints[:, :2], atol=1e-3)


def test_action_clock_finds_the_frames() -> None:
    schemas, clocks = set(), set()
    for index in range(60):
        clip = Clip(SEED, index, 24)
        record = action_record(clip)
        info = record["info"]
        duration = info.get("duration", info.get("Duration"))
        clocks.add(round(duration / (24 / 15), 3))
        if "markResult" in record:
            marks = [(m["event"], m["hdTimeStart"], m["hdTimeEnd"]) for m in record["markResult"]["marks"]]
        else:
            marks = [(m["event"], m["startTime"], m["endTime"]) for m in record["events"]]
        schemas.add("markResult" in record)
        found = [(e, int(a * 24 / duration), int(b * 24 / duration + 1e-9)) for e, a, b in marks]
        assert found == clip.events
    assert schemas == {True, False}
    assert clocks == {0.5, 1.0}


def test_rules_are_a_distribution(clips: list[Clip]) -> None:
    assert set(RULES) == set(CATEGORIES.values())
    for rules in RULES.values():
        assert sum(rule.share for rule in rules) == pytest.approx(1)
    rng = np.random.default_rng(0)
    for clip in clips[:5]:
        drawn = [draw_grasp(clip.thing, clip.scale, rng) for _ in range(400)]
        for rule in RULES[clip.thing.category]:
            share = sum(grasp.rule == rule.name for grasp in drawn) / len(drawn)
            assert abs(share - rule.share) < 0.12  # five standard deviations
        assert np.mean([np.sin(grasp.forearm) > 0 for grasp in drawn]) > 0.5


def test_knife_is_never_held_by_its_blade() -> None:
    knife = Clip(SEED, list(CATEGORIES.values()).index("Knife"), FRAMES).thing
    rng = np.random.default_rng(0)
    for _ in range(200):
        grasp = draw_grasp(knife, 1.4, rng)
        held = 0.45 * grasp.joints[4, :2] + 0.55 * grasp.joints[[8, 12], :2].mean(axis=0)
        along = (held - knife.centre) @ np.array([np.cos(knife.angle), np.sin(knife.angle)]) / knife.size
        assert along > 0.1


def test_contact_frames_are_fresh_draws(clips: list[Clip]) -> None:
    clip = clips[1]
    grasps = [clip.grasp(i) for i in range(FRAMES) if clip.event(i) in CONTACT_EVENTS]
    wrists = np.array([g.joints[0, :2] for g in grasps if g is not None])
    assert np.linalg.norm(wrists[:, None] - wrists[None], axis=-1)[np.triu_indices(len(wrists), 1)].min() > 1


def test_traps_are_planted_and_listed(tree: Path, clips: list[Clip]) -> None:
    traps = json.loads((tree / "traps.json").read_text())
    assert traps == {clips[i].sequence: kind for i, kind in demo.plant_traps(CLIPS).items()}
    for sequence, kind in traps.items():
        hands = tree / "handpose/refinehandpose_right" / sequence
        if kind == "truncated_mp4":
            with pytest.raises(av.error.FFmpegError):
                decode(video_path(tree, sequence))
        if kind == "no_pickles":
            assert not hands.exists()
        if kind == "broken_pickles":
            records = [pickle.loads(p.read_bytes()) for p in hands.iterdir()]
            whole = [r["poseCoeff"].size == 48 and np.isfinite(r["kps2D"]).all() for r in records]
            assert any(whole)
            assert not all(whole)


@pytest.mark.parametrize("clips_drawn", [1, 11, 12, 48, 150, 1000])
def test_traps_are_few(clips_drawn: int) -> None:
    traps = demo.plant_traps(clips_drawn)
    costly = [kind for kind in traps.values() if kind not in ("broken_pickles", "no_pickles")]
    assert len(costly) <= max(1, 0.045 * clips_drawn)
    assert (len(traps) > 0) == (clips_drawn >= 12)


def test_sheet_is_a_picture(tmp_path: Path) -> None:
    demo.write_sheet(tmp_path / "sheet.png", 3, FRAMES, SEED, side=32, pairs=6)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (32, 6 * 64, 3)
