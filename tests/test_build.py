"""The build: nothing lost in silence, same input same bytes, and only the hole is painted."""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds

from data_prep import build, parts, shards
from data_prep.hoi4d import Sequence
from data_prep.pairing import crop_around
from data_prep.remove_hand import OpenCVRemover, RemovalRequest, hole_around
from hoi_lightning.data.sample import decode
from hoi_lightning.errors import InputError
from tests import hoi4d_tree
from tests.hoi4d_tree import CLIPS

CONTACT_FRAMES = range(4, 9)


def run_build(root: Path, out: Path, *options: str) -> dict:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    fast = ["--size", "64", "--workers", "1", "--samples-per-shard", "4"]
    build.run(parser.parse_args(["--hoi4d", str(root), "--out", str(out), *fast, *options]))
    return json.loads((out / "manifest.json").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Three clips, the last with a mask missing in frame 5, one of foreign colours in 6 and a black one in 7."""
    root = hoi4d_tree.draw_tree(tmp_path_factory.mktemp("tree"))
    broken = Sequence(root, CLIPS[2].name)
    broken.mask(5).unlink()
    cv2.imwrite(str(broken.mask(6)), np.full((1080, 1920, 3), 33, np.uint8))
    cv2.imwrite(str(broken.mask(7)), np.zeros((1080, 1920, 3), np.uint8))
    return root


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    run_build(tree, out)
    return out


def samples(out: Path) -> dict:
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    records = wds.WebDataset(urls, shardshuffle=False)
    return {record["__key__"]: decode({k: v for k, v in record.items() if k[0] != "_"}) for record in records}


def bytes_of(out: Path) -> dict:
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["run"]
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}
    return files | {"manifest": manifest}


def test_every_frame_is_in_a_shard_or_in_the_ledger(built):
    drops = [json.loads(line) for line in (built / "dropped.jsonl").read_text().splitlines()]
    ledger = [(drop["sequence"], drop["frame"]) for drop in drops]
    kept = [(sample.info.sequence, sample.info.frame) for sample in samples(built).values()]
    everything = [(clip.name, frame) for clip in CLIPS for frame in range(clip.num_frames)]
    assert sorted(ledger + kept) == sorted(everything)
    reasons = {(drop["sequence"], drop["frame"]): drop["reason"] for drop in drops if drop["frame"] in CONTACT_FRAMES}
    broken = CLIPS[2].name
    assert reasons == {(broken, 5): "no-mask", (broken, 6): "bad-mask", (broken, 7): "no-hand"}


def test_the_manifest_tells_the_truth(built):
    manifest = json.loads((built / "manifest.json").read_text())
    drops = (built / "dropped.jsonl").read_text().splitlines()
    decoded = samples(built)
    for shard in manifest["shards"]:
        data = (built / shard["name"]).read_bytes()
        assert shard["bytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    assert {shard["name"] for shard in manifest["shards"]} == {path.name for path in built.glob("*.tar")}
    assert sum(shard["count"] for shard in manifest["shards"]) == len(decoded) == manifest["frames"]["kept"]
    assert sum(sum(counts.values()) for counts in manifest["counts"].values()) == len(decoded)
    assert sum(manifest["dropped"].values()) == len(drops) == manifest["frames"]["seen"] - len(decoded)
    assert not list(built.glob(".*"))


def test_samples_agree_with_the_drawing(built):
    for key, sample in samples(built).items():
        info = sample.info
        clip = next(clip for clip in CLIPS if clip.name == info.sequence)
        assert key == info.key == Sequence(built, info.sequence).key(info.frame)
        assert sample.hoi.shape == sample.obj.shape == (64, 64, 3)
        assert (info.hand_side, info.event) == ("left" if clip.hand_label == 6 else "right", "Pickup")
        _, labels = hoi4d_tree.draw_frame(clip, info.frame)
        x0, y0, x1, y1 = (int(value) for value in info.crop)
        share = (labels[y0:y1, x0:x1] == clip.hand_label).mean()
        assert sample.hand.mean() == pytest.approx(share, abs=0.02)
        # The whole block is known from the hand-free frames: 260 pixels long, the crop 2.6 times as large.
        assert x1 - x0 == y1 - y0 == 676
        box = np.array(info.object_box)
        np.testing.assert_allclose(box[2:] - box[:2], np.array([260, 160]) * 64 / 676, atol=0.1)
        assert (info.keypoints is not None) == clip.keypoints
        centre = (np.array(hoi4d_tree.hand_centre(info.frame)) + 0.5 - (x0, y0)) / 338 - 1
        tolerance = 0.02 if clip.keypoints else 0.2
        np.testing.assert_allclose([info.layout.x, info.layout.y], centre, atol=tolerance)
        assert info.layout.b2 > 0.7  # the forearm leaves downwards
        assert info.layout_iou > 0.4


def test_plates_are_used_and_the_hand_is_gone(built):
    for sample in samples(built).values():
        assert sample.info.remover == "opencv:plate"
        skin = np.array(hoi4d_tree.SKIN)
        assert abs(sample.hoi[sample.hand].astype(int) - skin).mean() < 20
        assert abs(sample.obj[sample.hand].astype(int) - skin).mean() > 20


@pytest.mark.parametrize("options", [("--workers", "2"), ()])
def test_same_input_same_bytes(tree, built, tmp_path, options, monkeypatch):
    if not options:  # the power fails in the middle of the second clip
        write_part = parts.write_part

        def fail(sequence, settings, remover, path):
            if sequence.name == CLIPS[2].name:
                raise KeyboardInterrupt
            write_part(sequence, settings, remover, path)

        monkeypatch.setattr(parts, "write_part", fail)
        with pytest.raises(KeyboardInterrupt):
            run_build(tree, tmp_path)
        assert not (tmp_path / "manifest.json").exists()
        done = {path.with_suffix(".tar").name for path in (tmp_path / ".parts").glob("ZY*.json")}
        assert done

        def resume(sequence, settings, remover, path):
            assert path.name not in done
            write_part(sequence, settings, remover, path)

        monkeypatch.setattr(parts, "write_part", resume)
    run_build(tree, tmp_path, *options)
    assert bytes_of(tmp_path) == bytes_of(built)


def test_a_finished_build_returns_and_other_settings_are_refused(tree, built, monkeypatch):
    before = bytes_of(built)
    monkeypatch.setattr(parts, "write_part", None)
    run_build(tree, built)
    for option in (("--size", "96"), ("--seed", "1"), ("--stride", "2")):
        with pytest.raises(InputError, match=option[0].strip("-")):
            run_build(tree, built, *option)
    assert bytes_of(built) == before


def test_a_build_that_lost_a_tar_says_so(built, tree, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(built, out)
    tar = next(out.glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1024])
    with pytest.raises(InputError, match=rf"{tar.name} is not as it was built; copy it again, or remove"):
        run_build(tree, out)
    tar.unlink()
    with pytest.raises(InputError, match=tar.name):
        run_build(tree, out)


def test_bad_places_are_named(tree, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        run_build(tree, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-000000.tar").write_text("precious")
    with pytest.raises(InputError, match="mine"):
        run_build(tree, tmp_path / "mine")
    with pytest.raises(InputError, match="nowhere"):
        run_build(tmp_path / "nowhere", tmp_path / "out")
    assert (tmp_path / "mine" / "train-000000.tar").read_text() == "precious"


def test_a_clip_of_no_use_is_in_the_ledger(tmp_path):
    names = {name: clip.name for name, clip in zip(("video", "actions", "masks"), CLIPS, strict=True)}
    root = hoi4d_tree.draw_tree(tmp_path / "tree")
    video = Sequence(root, names["video"]).video
    video.write_bytes(video.read_bytes()[:1000])
    Sequence(root, names["actions"]).actions.write_text("")
    shutil.rmtree(Sequence(root, names["masks"]).mask_folder)
    with pytest.raises(InputError, match=r"dropped\.jsonl"):
        run_build(root, tmp_path / "out")
    drops = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {(drop["sequence"], drop["frame"], drop["reason"]) for drop in drops} == {
        (names["video"], None, "undecodable-video"),
        (names["actions"], None, "no-actions"),
        (names["masks"], None, "no-mask-folder"),
    }
    assert all((root / drop["path"]).parent.exists() for drop in drops)


def test_a_short_video_costs_the_frames_behind_its_end(tmp_path):
    clip = hoi4d_tree.Clip(CLIPS[0].name)
    root = hoi4d_tree.draw_tree(tmp_path / "tree", [clip])
    video = Sequence(root, clip.name).video
    shutil.rmtree(video.parent)
    hoi4d_tree.write_video(video, [hoi4d_tree.draw_frame(clip, index)[0] for index in range(7)])
    manifest = run_build(root, tmp_path / "out")
    assert {sample.info.frame for sample in samples(tmp_path / "out").values()} == {4, 5, 6}
    assert manifest["dropped"]["short-video"] == 2


def test_splits_never_share_an_object():
    instances = [
        f"{category}/N{n:02d}" for category, count in zip("ABCDE", (1, 2, 3, 10, 47), strict=True) for n in range(count)
    ]
    for seed in range(5):
        splits = shards.assign_splits(instances, (0.1, 0.1), seed)
        assert set(splits) == set(instances)
        assert splits == shards.assign_splits(reversed(instances), (0.1, 0.1), seed)
        for category in "CDE":
            assert {splits[name] for name in instances if name[0] == category} == {"train", "val", "test"}
    assert splits != shards.assign_splits(instances, (0.1, 0.1), 0)
    assert set(shards.assign_splits(instances, (0.0, 0.0), 0).values()) == {"train"}
    assert "train" in shards.assign_splits(instances[3:6], (0.6, 0.3), 0).values()
    assert set(shards.assign_splits(instances, (0.0, 1.0), 0).values()) == {"test"}
    assert set(shards.assign_splits(instances, (0.5, 0.5), 0).values()) == {"val", "test"}


@pytest.mark.parametrize("splits", ["0.6,0.5", "-0.1,0.5", "1", "abc", "nan,nan"])
def test_shares_that_are_none_are_refused(tree, tmp_path, splits, capsys):
    with pytest.raises(SystemExit):
        run_build(tree, tmp_path, f"--splits={splits}")
    assert "at most 1 together" in capsys.readouterr().err


def test_crops_are_square_inside_the_picture_and_hold_the_object():
    random = np.random.default_rng(0)
    for camera in range(1, 5):
        valid = Sequence(Path(), f"ZY2021080000{camera}/H1/C2/N01/S1/s01/T1").valid
        for _ in range(200):
            low = random.integers((valid[0], valid[1]), (valid[2] - 8, valid[3] - 8))
            high = np.minimum(low + random.integers(8, 1000, 2), valid[2:])
            box = (*low.tolist(), *high.tolist())
            x0, y0, x1, y1 = crop_around(box, valid)
            assert x1 - x0 == y1 - y0
            assert valid[0] <= x0 < x1 <= valid[2]
            assert valid[1] <= y0 < y1 <= valid[3]
            side = round(2.6 * (high - low).max())
            assert x1 - x0 == min(side, valid[2] - valid[0], valid[3] - valid[1])
            if (high - low).max() <= x1 - x0:
                assert x0 <= box[0] < box[2] <= x1
                assert y0 <= box[1] < box[3] <= y1


def removal(plate: bool, shift: int = 0) -> RemovalRequest:
    """A textured picture with a disc of a hand that throws a soft shadow to its right."""
    random = np.random.default_rng(1)
    scene = cv2.GaussianBlur(random.integers(0, 256, (128, 128, 3), np.uint8), (0, 0), 2).astype(np.float32)
    hand = cv2.circle(np.zeros((128, 128), np.uint8), (60, 70), 20, 1, -1)
    shade = cv2.GaussianBlur(np.roll(hand, 10, 1).astype(np.float32), (0, 0), 2)[..., None]
    hoi = np.where(hand[..., None] == 1, 200, scene * (1 - 0.4 * shade)).astype(np.uint8)
    hand = hand.astype(bool)
    clean = np.roll(scene, shift, 1).astype(np.uint8)
    return RemovalRequest("key", hoi, hand, hole_around(hand, 256), ~hand, clean if plate else None)


@pytest.mark.parametrize("plate", [True, False])
def test_only_the_hole_is_painted(plate):
    request = removal(plate)
    (removed,) = OpenCVRemover()([request])
    assert removed.name == ("opencv:plate" if plate else "opencv:telea")
    np.testing.assert_array_equal(removed.obj[~removed.hole], request.hoi[~removed.hole])
    assert removed.hole[request.hole].all()
    assert request.hole[request.hand].all()
    (again,) = OpenCVRemover()([request])
    np.testing.assert_array_equal(removed.obj, again.obj)


def test_a_plate_gives_back_what_the_hand_and_its_shadow_hid():
    request = removal(plate=True)
    (removed,) = OpenCVRemover()([request])
    np.testing.assert_array_equal(removed.obj[request.hand], request.plate[request.hand])
    before = abs(request.hoi.astype(int) - request.plate)[~request.hand].mean()
    assert abs(removed.obj.astype(int) - request.plate)[~request.hand].mean() < before / 4


def test_a_plate_of_another_view_is_not_used():
    (removed,) = OpenCVRemover()([removal(plate=True, shift=9)])
    assert removed.name == "opencv:telea"


def test_no_part_without_its_clip_being_finished(tree, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("bug")

    monkeypatch.setattr(parts, "make_pairs", fail)
    with pytest.raises(RuntimeError):
        run_build(tree, tmp_path)
    assert [path.name for path in (tmp_path / ".parts").iterdir()] == ["settings.json"]
