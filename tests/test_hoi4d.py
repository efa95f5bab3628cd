"""The reader: both of everything that HOI4D has two of, and nothing believed that a file says about code."""

import json
import os
import pickle
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep import hoi4d
from data_prep.hoi4d import Fault, Sequence
from data_prep.pairing import PairSettings, make_pairs, plan_clip
from data_prep.remove_hand import OpenCVRemover
from data_prep.sources import Drop, open_source
from data_prep.zips import ZipPath
from hoi_lightning.data.sample import encode
from hoi_lightning.errors import InputError
from tests import hoi4d_tree
from tests.hoi4d_tree import CLIPS, Clip

FULL = (0, 0, hoi4d.WIDTH, hoi4d.HEIGHT)


def touch_video(root, name):
    path = Sequence(root, name).video
    path.parent.mkdir(parents=True)
    path.touch()


def test_sequences_are_those_on_disk_and_in_a_crlf_list(tmp_path):
    (tmp_path / "HOI4D_release").mkdir()
    names = [clip.name for clip in CLIPS]
    for name in names[:2]:
        touch_video(tmp_path, name)
    (tmp_path / "release.txt").write_bytes(f"{names[2]}\r\n{names[1]}\r\n{names[1]}\r\n\r\n".encode())
    found, left_out = hoi4d.find_sequences(tmp_path)
    assert [sequence.name for sequence in found] == [names[1]]
    assert {(name, reason) for name, reason, _ in left_out} == {(names[2], "no-video"), (names[0], "not-listed")}


@pytest.mark.parametrize("make", [lambda path: None, lambda path: (path / "HOI4D_release").mkdir(parents=True)])
def test_a_tree_without_clips_is_named(tmp_path, make):
    make(tmp_path / "tree")
    with pytest.raises(InputError, match="tree"):
        hoi4d.find_sequences(tmp_path / "tree")


@pytest.mark.parametrize(
    ("clock", "num_frames"), [(10.0, 12), (20.0, 12), (10.0, 300), (20.0, 300), (None, 300)]
)  # fmt: skip
@pytest.mark.parametrize("schema", ["A", "B"])
def test_schemas_and_clocks_give_the_same_frames(tmp_path, schema, clock, num_frames):
    path = tmp_path / "color.json"
    path.write_text(json.dumps(hoi4d_tree.actions(Clip("", schema, clock, num_frames=num_frames))))
    events = hoi4d.read_events(path, num_frames)
    assert [(event.name, event.first, event.stop) for event in events] == [
        ("rest", 0, 3), ("Reachout", 3, 4), ("Pickup", 4, 9), ("rest", 9, num_frames)
    ]  # fmt: skip


@pytest.mark.parametrize("num_frames", [12, 300])
def test_a_missing_duration_is_the_videos_or_half_of_it_when_the_events_say_so(tmp_path, num_frames):
    path = tmp_path / "color.json"
    for clock in (num_frames / 15, num_frames / 30):
        record = hoi4d_tree.actions(Clip("", clock=clock, num_frames=num_frames))
        del record["info"]
        path.write_text(json.dumps(record))
        assert hoi4d.read_events(path, num_frames)[2].first == 4


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"events": []}', '{"events": [{"event": "rest"}]}', '{"events": [{"event": "rest", '
    '"startTime": NaN, "endTime": 1}]}', '{"events": null}', '{"markResult": 3}']
)  # fmt: skip
def test_a_broken_action_file_is_a_fault(tmp_path, content):
    (tmp_path / "color.json").write_text(content)
    with pytest.raises(Fault, match="no-actions"):
        hoi4d.read_events(tmp_path / "color.json", 300)
    with pytest.raises(Fault, match="no-actions"):
        hoi4d.read_events(tmp_path / "missing.json", 300)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("turn&on&the&switch", "contact"), ("Carry with both hands", "contact"), ("paper-cut", "contact"),
     ("Lookaround", "idle"), ("Reachout", "idle"), ("Squat", "unknown"), ("", "unknown")],
)  # fmt: skip
def test_event_names_are_read_as_hoi4d_spells_them(name, kind):
    assert hoi4d.Event(name, 0, 1).kind == kind


@pytest.mark.parametrize(
    ("category", "hands"),
    [("C2", {2}), ("C8", {2, 6}), ("C17", {2, 6}), ("C20", {2, 3})],
)
def test_hands_and_objects_part_the_labels(tmp_path, category, hands):
    sequence = Sequence(tmp_path, f"ZY20210800001/H1/{category}/N01/S1/s01/T1")
    assert set(sequence.hand_labels.values()) == hands
    objects = [label for group in sequence.objects for label in group]
    assert len(objects) == len(set(objects))
    assert set(objects) | hands == set(range(1, 10))


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L"])
def test_labels_are_the_palette_inverted(tmp_path, mode):
    labels = np.repeat(np.arange(10, dtype=np.uint8), 192)[None].repeat(1080, 0)
    picture = Image.fromarray(np.array(hoi4d.PALETTE, np.uint8)[labels])
    if mode == "P":
        picture = Image.fromarray(labels, "P")
        picture.putpalette(np.array(hoi4d.PALETTE, np.uint8).ravel().tolist())
    if mode == "L":
        picture = Image.fromarray(labels)
    picture.convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(hoi4d.read_labels(tmp_path / "m.png", FULL).at(FULL), labels)
    inside = hoi4d.read_labels(tmp_path / "m.png", (15, 0, 1900, 1050)).at(FULL)
    np.testing.assert_array_equal(inside[:1050, 15:1900], labels[:1050, 15:1900])
    assert inside.sum() == labels[:1050, 15:1900].sum()


def test_a_bad_mask_is_a_fault(tmp_path):
    path = tmp_path / "m.png"
    with pytest.raises(Fault, match="no-mask"):
        hoi4d.read_labels(path, FULL)
    cv2.imwrite(str(path), np.full((1080, 1920, 3), 77, np.uint8))
    with pytest.raises(Fault, match="palette"):
        hoi4d.read_labels(path, FULL)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Fault, match="decoded"):
        hoi4d.read_labels(path, FULL)
    cv2.imwrite(str(path), np.full((1080, 1920), 77, np.uint8))
    with pytest.raises(Fault, match="palette"):
        hoi4d.read_labels(path, FULL)
    cv2.imwrite(str(path), np.zeros((1080, 1920, 3), np.uint16))
    with pytest.raises(Fault, match="8-bit"):
        hoi4d.read_labels(path, FULL)
    cv2.imwrite(str(path), np.zeros((540, 960, 3), np.uint8))
    with pytest.raises(Fault, match="960x540"):
        hoi4d.read_labels(path, FULL)


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def test_a_pickle_never_runs_code(tmp_path):
    canary = str(tmp_path / "canary")
    path = tmp_path / "0.pickle"
    for record in ({"kps2D": Malicious(canary)}, Malicious(canary), np.array([Malicious(canary)], dtype=object)):
        path.write_bytes(pickle.dumps(record))
        with pytest.raises(Fault, match="not allowed"):
            hoi4d.read_keypoints(path)
    assert not os.path.exists(canary)


def test_keypoints_of_either_numpy_are_read_and_broken_ones_refused(tmp_path):
    path = tmp_path / "0.pickle"
    expected = np.arange(42.0).reshape(21, 2)
    for dtype in (np.float32, np.float64, np.int64):
        data = pickle.dumps({"poseCoeff": np.zeros(48), "kps2D": expected.astype(dtype)}, protocol=2)
        for spelling in (data, data.replace(b"numpy._core", b"numpy.core")):
            path.write_bytes(spelling)
            np.testing.assert_array_equal(hoi4d.read_keypoints(path), expected)
    pose = np.zeros(48)
    for broken in ((np.zeros(1), pose), (expected * np.nan, pose), (expected, np.zeros(1)), (None, None)):
        path.write_bytes(pickle.dumps(dict(zip(("kps2D", "poseCoeff"), broken, strict=True)), protocol=2))
        with pytest.raises(Fault, match="bad-hand-pose"):
            hoi4d.read_keypoints(path)
    path.write_bytes(data[:50])
    with pytest.raises(Fault, match="bad-hand-pose"):
        hoi4d.read_keypoints(path)


@pytest.mark.parametrize("folder", ["handpose/refinehandpose_left", "Hand_pose/handpose_left_hand"])
def test_both_generations_of_hand_pose_folders_are_found(tmp_path, folder):
    sequence = Sequence(tmp_path, CLIPS[0].name)
    path = tmp_path / folder / sequence.name / "7.pickle"
    path.parent.mkdir(parents=True)
    path.touch()
    assert sequence.hand_pose(7, "left") == path
    assert sequence.hand_pose(7, "right") is None


def test_a_clip_has_one_mask_folder(tmp_path):
    hoi4d_tree.draw_clip(tmp_path, Clip(CLIPS[1].name, num_frames=1))
    sequence = Sequence(tmp_path, CLIPS[1].name)
    assert sequence.mask_folder.name == "shift_mask"
    shutil.copytree(sequence.mask_folder, sequence.mask_folder.with_name("mask"))
    with pytest.raises(Fault, match="no-mask-folder"):
        _ = Sequence(tmp_path, CLIPS[1].name).mask_folder


def test_video_comes_forward_and_whole(tmp_path):
    frames = [np.full((1080, 1920, 3), 20 * index, np.uint8) for index in range(6)]
    hoi4d_tree.write_video(tmp_path / "v" / "image.mp4", frames)
    decoded = [frame.to_ndarray(format="rgb24") for frame in hoi4d.decode_video(tmp_path / "v" / "image.mp4")]
    assert hoi4d.count_frames(tmp_path / "v" / "image.mp4") == len(decoded) == 6
    for frame, expected in zip(decoded, frames, strict=True):
        assert abs(frame.astype(int) - expected).mean() < 3
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "v" / "image.mp4").read_bytes()[:500])
    with pytest.raises(Fault, match="undecodable-video"):
        hoi4d.count_frames(tmp_path / "cut.mp4")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two clips, the second with a mask missing in frame 5 and an empty one in frame 6."""
    root = hoi4d_tree.draw_tree(tmp_path_factory.mktemp("tree"), CLIPS[:2])
    broken = Sequence(root, CLIPS[1].name)
    broken.mask(5).unlink()
    broken.mask(6).write_bytes(b"")
    return root


def outcomes(root):
    """All that pairing makes of a tree, as bytes, and its ledger without the archives' spelling."""
    samples, drops = {}, set()
    clips, left_out = open_source(root).find()
    settings = PairSettings(64)
    for clip in clips:
        plan = plan_clip(pickle.loads(pickle.dumps(clip)), settings)  # as a worker process gets it
        for outcome in [*plan.drops, *make_pairs(clip, plan.pairs, settings, OpenCVRemover())]:
            if isinstance(outcome, Drop):
                path = outcome.path.rpartition("ZY")[2]
                drops.add((outcome.sequence, outcome.frame, outcome.reason, path, outcome.detail))
            else:
                samples[outcome[0].info.key] = encode(outcome[0])
    return samples, drops, left_out, [clip.num_bytes for clip in clips]


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_give_the_very_pairs_of_the_unpacked_tree(tree, tmp_path, packed):
    expected = outcomes(tree)
    assert len(expected[0]) == 8
    zipped = hoi4d_tree.zip_tree(tree, tmp_path / "zipped", packed)
    assert outcomes(zipped) == expected
    (zipped / "HOI4D_release.zip").unlink()  # some unpacked, some not
    shutil.copytree(tree / "HOI4D_release", zipped / "HOI4D_release")
    assert outcomes(zipped) == expected


def test_a_hand_outside_the_crop_is_dropped_whatever_its_least_area(tmp_path):
    root = hoi4d_tree.draw_tree(tmp_path, CLIPS[:1])
    labels = np.zeros((1080, 1920), np.uint8)
    labels[400:600, 60:1860] = 1  # the crop cannot hold all of it
    labels[400:600, 40:100] = 2
    hoi4d_tree.write_mask(Sequence(root, CLIPS[0].name).mask(5), labels)
    (clip,), _ = open_source(root).find()
    drops = {drop.frame: drop for drop in plan_clip(clip, PairSettings(64, min_hand_area=0)).drops}
    assert (drops[5].reason, drops[5].detail) == ("hand-too-small", "lies outside the crop")


def test_a_fault_in_a_zip_names_zip_and_member(tree, tmp_path):
    zipped = hoi4d_tree.zip_tree(tree, tmp_path / "zipped")
    clip = Sequence(zipped, CLIPS[1].name)
    with pytest.raises(Fault, match="no-mask") as caught:
        clip.labels(5)
    expected = f"HOI4D_annotations.zip!{clip.name}/2Dseg/shift_mask/00005.png"
    assert Drop.of(clip, 5, caught.value).path == expected
    with pytest.raises(Fault, match="no-mask-folder") as caught:
        _ = Sequence(zipped, clip.name.replace("T1", "T2")).mask_folder
    assert Drop.of(clip, None, caught.value).path.startswith("HOI4D_annotations.zip!ZY20210800003/")


def test_members_that_are_damaged_are_faults_and_broken_zips_are_named(tree, tmp_path):
    zipped = hoi4d_tree.zip_tree(tree, tmp_path / "zipped", zipfile.ZIP_STORED)
    path = zipped / "HOI4D_annotations.zip"
    data = bytearray(path.read_bytes())
    begin = data.index(b"IDAT")
    data[begin + 8] ^= 255
    path.write_bytes(data)
    with pytest.raises(Fault, match="bad-mask"):
        Sequence(zipped, CLIPS[0].name).labels(0)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"HOI4D_annotations\.zip"):
        open_source(zipped).find()[0][0].labels(0)


def test_zips_with_64_bit_fields_and_junk_in_front_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    folders = [f"ZY20210800001/H1/C2/N01/S1/s01/T{task}" for task in (1, 12, 1)]
    path = tmp_path / "big.zip"
    path.write_bytes(b"junk" * 5)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        for number, folder in enumerate(folders):  # a folder's members need not lie together
            if number < 2:
                file.writestr(f"top/{folder}/", b"")
            file.writestr(f"top/{folder}/2Dseg/mask/{number}.png", bytes([number]) * 50)
            file.writestr(f"__MACOSX/top/{folder}/2Dseg/mask/._{number}.png", b"")
    masks = ZipPath(path, f"top/{folders[0]}/2Dseg/mask")
    assert masks.is_dir()
    assert sorted(masks.names()) == ["0.png", "2.png"]
    assert (masks / "2.png").read_bytes() == bytes([2]) * 50
    assert (ZipPath(path, f"top/{folders[1]}") / "2Dseg/mask/1.png").read_bytes() == bytes([1]) * 50
    assert not (masks / "1.png").is_file()
    with pytest.raises(FileNotFoundError):
        (masks / "1.png").read_bytes()
