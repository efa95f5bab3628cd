"""The mini world keeps HOI4D's formats, its own rules and its seed."""

import argparse
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import get_args

import av
import cv2
import numpy as np
import pytest

from data_prep import hoi4d
from data_prep.mini import demo
from data_prep.mini.arm import COARSE, paint_arm
from data_prep.mini.hoi4d_files import OBJPOSE_LABELS, action_record, object_labels, video_path, write_clip
from data_prep.mini.objects import CATEGORIES, INSTANCES
from data_prep.mini.png import Bands, blank_rows, encode_png
from data_prep.mini.sheet import write_sheet, write_truth_sheet
from data_prep.mini.splits import MAX_CLIPS, ROSTERS, Split
from data_prep.mini.world import BORDERS, CONTACT_EVENTS, Clip
from hoi_lightning.errors import InputError

WORLD = demo.World(clips=6, frames=8, seed=3)  # of the plainest kind: no traps
FRAMES = WORLD.frames
PALETTE = {0x000000, 0x800000, 0x008000}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo without traps, drawn by two processes."""
    out = tmp_path_factory.mktemp("mini") / "demo"
    demo.draw_world(out, WORLD, workers=2)
    return out


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """The clips the tree was drawn from."""
    return WORLD.all_clips()


def masks_of(tree: Path, clip: Clip) -> Path:
    """Folder of a plain clip's masks."""
    return tree / "HOI4D_annotations" / clip.sequence / "2Dseg" / "mask"


def decode(path: Path) -> list[np.ndarray]:
    """All frames of a video, RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(list(words))


def test_same_seed_same_bytes_whoever_draws(tree: Path, tmp_path: Path) -> None:
    write_clip(tmp_path, WORLD.all_clips()[2])
    again = files_of(tmp_path)
    assert len(again) >= 3 * FRAMES
    for name, content in again.items():
        assert (tree / name).read_bytes() == content, name


def test_other_seed_other_world(clips: list[Clip]) -> None:
    assert not np.array_equal(Clip(WORLD.seed + 1, 0, FRAMES).clean, clips[0].clean)


def test_rerun_goes_on_where_it_was(tree: Path, clips: list[Clip]) -> None:
    before = files_of(tree)
    video_path(tree, clips[1].sequence).unlink()
    (tree / "demo.json").rename(tree / "demo.part.json")
    demo.draw_world(tree, WORLD, workers=1)
    assert files_of(tree) == before


@pytest.mark.parametrize(
    ("other", "named"),
    [({"seed": 4}, "seed"), ({"split": "seen"}, "split"), ({"traps": frozenset({"schema_b"})}, "traps"),
     ({"clips": 7, "frames": 9}, "clips, frames")],
)  # fmt: skip
def test_other_settings_are_refused(tree: Path, other: dict, named: str) -> None:
    with pytest.raises(InputError, match=f"another {named}; choose another OUT"):
        demo.draw_world(tree, demo.World(**({"clips": 6, "frames": 8, "seed": 3} | other)), workers=1)


@pytest.mark.parametrize(
    "wrong", [["--frames", "3"], ["--clips", "0"], ["--seed", "-1"], ["--seed", "1000000"], ["--workers", "0"]]
)
def test_numbers_out_of_range_are_named(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=wrong[0]):
        demo.run(parse(str(tmp_path), *wrong))


def test_seeds_of_shipped_weights_are_no_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(demo, "draw_world", lambda out, world, workers: drawn.append(world.seed))
    demo.run(parse(str(tmp_path), "--seed", "999999"))
    demo.run(parse(str(tmp_path), "--seed", "0", "--for-weights"))
    assert drawn[0] < demo.WEIGHTS_SEED <= drawn[1]


def test_release_names_every_sequence_once(tree: Path, clips: list[Clip]) -> None:
    assert (tree / "release.txt").read_bytes() == "".join(f"{clip.sequence}\n" for clip in clips).encode()


@pytest.mark.parametrize("split", get_args(Split))
def test_no_sequence_comes_twice(split: Split) -> None:
    """Names must differ in what follows from the index: camera and task are drawn, and may be alike."""
    roster = ROSTERS[split]
    num_instances = roster.last - roster.first + 1
    for index in range(0, MAX_CLIPS, 7):  # two clips of one room and layout are 1920 apart
        name = (index % len(roster.categories), index // len(roster.categories) % num_instances)
        for other in range(index + 1920, MAX_CLIPS, 1920):
            assert name != (other % len(roster.categories), other // len(roster.categories) % num_instances)


def test_the_command_line_knows_the_splits() -> None:
    assert set(demo.SPLITS) == set(get_args(Split)) == set(ROSTERS)


def test_splits_differ_as_they_say() -> None:
    pool = {split: [Clip(WORLD.seed, index, FRAMES, split) for index in range(400)] for split in get_args(Split)}
    things = {split: {(clip.category, clip.instance) for clip in clips} for split, clips in pool.items()}
    assert things["train"] == things["seen"]
    assert things["unseen"] == things["clutter"]
    assert not things["train"] & things["unseen"]
    kettle = next(number for number, name in CATEGORIES.items() if name == "Kettle")
    assert {category for category, _ in things["category"]} == {kettle}
    assert kettle not in {category for category, _ in things["train"] | things["unseen"]}
    assert len(things["all"]) == 6 * INSTANCES
    assert things["train"] | things["unseen"] | things["category"] == things["all"]
    assert {clip.scene for clip in pool["clutter"]} == {"clutter"}
    assert len(things["varied"]) == 400
    assert {category for category, _ in things["varied"]} == {category for category, _ in things["train"]}
    for split in ("all", "train", "seen", "unseen", "category", "varied"):
        assert 0.25 < np.mean([clip.scene == "clutter" for clip in pool[split]]) < 0.45


def test_seen_clips_show_trains_objects_otherwise() -> None:
    train, seen = (Clip(WORLD.seed, 7, FRAMES, split) for split in ("train", "seen"))
    assert (train.category, train.instance) == (seen.category, seen.instance)
    assert np.array_equal(train.thing.shape, seen.thing.shape)
    assert np.array_equal(train.thing.colours, seen.thing.colours)
    assert not np.array_equal(train.thing.centre, seen.thing.centre)


def test_masks_and_video_are_hoi4d(tree: Path, clips: list[Clip]) -> None:
    for clip in clips[::3]:
        frames = decode(video_path(tree, clip.sequence))
        names = sorted(p.name for p in masks_of(tree, clip).iterdir())
        assert len(frames) == FRAMES
        assert names == [f"{i:05d}.png" for i in range(FRAMES)]
        for number in (0, FRAMES // 2):
            mask = cv2.imread(str(masks_of(tree, clip) / names[number]), cv2.IMREAD_UNCHANGED)
            assert mask.shape == frames[number].shape == (1080, 1920, 3)
            codes = set(np.unique(mask[..., ::-1].astype(np.int32) @ [65536, 256, 1]).tolist())
            assert codes <= PALETTE
            assert (0x008000 in codes) == (number > 0)
            labels = object_labels(clip)
            hand = clip.frame(number).hand_mask
            np.testing.assert_array_equal(mask[..., 1] > 0, hand)
            np.testing.assert_array_equal(mask[..., 2] > 0, (labels > 0) & ~hand)
            for edge in (frames[number][:, :15], frames[number][1050:]):  # nothing is black without the trap
                assert edge.mean() > 20


def test_video_shows_what_was_drawn(tree: Path, clips: list[Clip]) -> None:
    clip = clips[0]
    shown = decode(video_path(tree, clip.sequence))
    for number in (0, 5):
        assert np.abs(shown[number].astype(int) - clip.frame(number).rgb).mean() < 4


@pytest.mark.parametrize("camera", [2, 3])
def test_borders_are_black_where_the_trap_is(camera: int) -> None:
    candidates = (Clip(WORLD.seed, i, FRAMES, "all", frozenset({"black_borders"})) for i in range(40))
    clip = next(clip for clip in candidates if clip.camera == camera)
    columns, rows = BORDERS[camera]
    frame = clip.frame(FRAMES // 2)
    assert frame.rgb[:, :columns].max() == frame.rgb[1080 - rows :].max() == 0
    assert frame.rgb[: 1080 - rows, columns:].min(axis=2).mean() > 20
    for mask in (frame.hand_mask, clip.object_mask):
        assert not mask[:, :columns].any()
        assert not mask[1080 - rows :].any()
    assert clip.valid == hoi4d.Sequence(Path(), clip.sequence).valid


def test_png_rows_are_what_a_decoder_sees() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        rows, pixels = blank_rows(40, 70, channels)
        pixels[:] = rng.integers(0, 256, pixels.shape, np.uint8)
        png = encode_png(rows, "rgb" if channels == 3 else "grey")
        seen = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(seen.reshape(40, 70, channels)[..., ::-1], pixels)


def test_pngs_of_bands_are_those_of_whole_pictures() -> None:
    rng = np.random.default_rng(0)
    rows, pixels = blank_rows(130, 70, 3)  # two bands and a piece
    pixels[:] = rng.integers(0, 2, pixels.shape, np.uint8)
    still, bands = pixels.copy(), Bands(rows)
    for changed in (range(0), range(59, 60), range(60, 61), range(10, 125), range(129, 130), range(130)):
        pixels[changed.start : changed.stop] = rng.integers(0, 256, (len(changed), 70, 3))
        png = bands.encode(changed)
        begin = png.index(b"IDAT")
        (size,) = struct.unpack(">I", png[begin - 4 : begin])
        assert zlib.decompress(png[begin + 4 : begin + 4 + size]) == rows.tobytes()  # which compares the checksum
        seen = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(seen[..., ::-1], pixels)
        pixels[:] = still


def test_coarse_covers_are_means_of_the_fine_one(clips: list[Clip]) -> None:
    for clip, shrink in ((clips[0], COARSE), (clips[1], 8)):
        blocks = clip.cover("object").reshape(1080 // shrink, shrink, 1920 // shrink, shrink)
        coarse = clip.cover("object", shrink)
        assert coarse.max() > 0.9
        np.testing.assert_allclose(coarse, blocks.mean(axis=(1, 3)), atol=1e-5)


def test_hand_is_drawn_where_its_joints_are(clips: list[Clip]) -> None:
    for clip in clips[:5]:
        frame = clip.frame(FRAMES // 2)
        keypoints, grasp = frame.keypoints, frame.grasp
        assert keypoints is not None
        assert grasp is not None
        hand = frame.hand_mask | (clip.object_mask if grasp.under else False)  # fingers pass behind it
        near = cv2.dilate(hand.astype(np.uint8), np.ones((9, 9), np.uint8))
        inside = keypoints[((keypoints >= 0) & (keypoints < (1920, 1080))).all(axis=1)].astype(int)
        assert near[inside[:, 1], inside[:, 0]].all()


def test_contact_frames_touch_and_rest_does_not(clips: list[Clip]) -> None:
    for clip in clips[:5]:
        for name, begin, _ in clip.events:
            frame = clip.frame(begin)
            if name == "rest":
                assert frame.window is None
                assert np.array_equal(frame.rgb, clip.clean)
            if name == "Grasp":
                near = cv2.dilate(clip.object_mask.view(np.uint8), np.ones((9, 9), np.uint8)).view(bool)
                assert (frame.hand_mask & near).any()
                assert (frame.hand_mask & clip.object_mask).sum() < 0.9 * clip.object_mask.sum()


def test_forearm_runs_out_of_the_picture(clips: list[Clip]) -> None:
    for clip in clips[:5]:
        mask = clip.frame(FRAMES // 2).hand_mask
        assert mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()


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
        assert np.isfinite(record["poseCoeff"]).all()


def test_object_poses_are_of_every_frame(tree: Path, clips: list[Clip]) -> None:
    folder = tree / "HOI4D_annotations" / clips[1].sequence / "objpose"
    assert sorted(p.name for p in folder.iterdir()) == [f"{i:05d}.json" for i in range(FRAMES)]
    record = json.loads((folder / "00005.json").read_text())
    assert record["frameId"] == 5
    assert record["dataList"][0]["label"] == OBJPOSE_LABELS[clips[1].category]
    assert set(OBJPOSE_LABELS) == set(CATEGORIES)


@pytest.mark.parametrize("frames", [8, 24, 300])
@pytest.mark.parametrize(
    "traps", [(), ("schema_b",), ("ten_second_clock",), ("missing_duration", "ten_second_clock"),
              ("capital_duration", "schema_b"), ("missing_duration", "schema_b")],
)  # fmt: skip
def test_the_reader_finds_the_events(tmp_path: Path, traps: tuple[str, ...], frames: int) -> None:
    clip = Clip(WORLD.seed, 0, frames, "all", frozenset(traps))
    (tmp_path / "color.json").write_text(json.dumps(action_record(clip)))
    events = hoi4d.read_events(tmp_path / "color.json", frames)
    assert [(event.name, event.first, event.stop) for event in events] == clip.events
    assert {event.name for event in events if event.kind == "contact"} == set(CONTACT_EVENTS)


def test_contact_frames_are_fresh_draws(clips: list[Clip]) -> None:
    clip = clips[1]
    grasps = [clip.grasp(i) for i in clip.contact_frames]
    wrists = np.array([g.joints[0, :2] for g in grasps if g is not None])
    assert np.linalg.norm(wrists[:, None] - wrists[None], axis=-1)[np.triu_indices(len(wrists), 1)].min() > 1


def test_sheets_are_pictures(tmp_path: Path, clips: list[Clip]) -> None:
    write_sheet(tmp_path / "sheet.png", clips[:2], side=32, pairs=4, columns=2)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (2 * 38, 2 * 70, 3)
    write_truth_sheet(tmp_path / "truth.png", clips[:2], side=64)
    assert cv2.imread(str(tmp_path / "truth.png")).shape[1] == 2 * 70


def test_digits_behind_the_object_are_hidden_and_all_else_of_the_hand_is_seen() -> None:
    hidden = 0
    for index in range(12):
        clip = Clip(0, index, FRAMES)
        for number in clip.contact_frames[:2]:
            grasp = clip.grasp(number)
            assert grasp is not None
            arm = paint_arm(grasp, clip.skin, clip.view.light)
            x0, y0, x1, y1 = arm.window
            cover = clip.cover(grasp.hidden_by, COARSE)[y0:y1, x0:x1]
            # a pixel near the middle of each of the layer's
            middles = np.s_[COARSE // 2 :: COARSE, COARSE // 2 :: COARSE]
            seen, whole = clip.draw(grasp).hand_mask[middles][y0:y1, x0:x1], arm.alpha > 0.99
            behind = whole & (arm.under > 0.99) & (cover > 0.99)
            assert not seen[behind].any()
            assert seen[whole & (arm.under < 0.01)].all()
            assert seen[whole & (cover < 0.01)].all()
            hidden += int(behind.sum())
    assert hidden > 1000
