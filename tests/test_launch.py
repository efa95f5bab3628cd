"""Builds beside and after each other: same bytes, nothing half-written taken for finished, one builder at a time."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_prep import launch, output, parts, resume
from data_prep.remove_hand import OpenCVRemover, RemovalRequest
from hoi_lightning.errors import InputError
from tests import hoi4d_tree
from tests.hoi4d_tree import CLIPS
from tests.test_build import bytes_of, run_build, samples

ALL_PARTS = {f"{clip.name.replace('/', '_')}.json" for clip in CLIPS}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return hoi4d_tree.draw_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    run_build(tree, out)
    return out


def finished_parts(out: Path) -> set[str]:
    return {path.name for path in (out / ".parts").glob("ZY*.json")}


def test_shares_together_are_the_whole(tree, built, tmp_path, monkeypatch):
    seen = []
    for share in ("3/2", "0/2", "2"):
        with pytest.raises(SystemExit):
            run_share(tree, tmp_path, share)
    for share in ("1/2", "2/2"):
        run_share(tree, tmp_path, share)
        seen.append(finished_parts(tmp_path))
        assert not list(tmp_path.glob("*.tar"))
    assert seen[0] < seen[1] == ALL_PARTS
    monkeypatch.setattr(parts, "write_part", None)
    run_build(tree, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(built)


def run_share(tree: Path, out: Path, share: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        run_build(tree, out, "--shard-range", share)


def test_one_builder_at_a_time(tree, tmp_path):
    with resume.alone(tmp_path, None):
        for options in ((), ("--shard-range", "1/2")):
            with pytest.raises(InputError, match=rf"process {os.getpid()} .*kill {os.getpid()}"):
                run_build(tree, tmp_path, *options)
    with resume.alone(tmp_path, (1, 2)), resume.alone(tmp_path, (2, 2)):
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            run_build(tree, tmp_path, "--shard-range", "2/2")
        with pytest.raises(InputError, match="--shard-range"):
            run_build(tree, tmp_path)
    assert not list(tmp_path.glob("*.tar"))
    with resume.alone(tmp_path, None):
        pass


def test_an_unfinished_build_of_other_settings_is_kept(tree, built, tmp_path):
    run_share(tree, tmp_path, "1/2")
    before = finished_parts(tmp_path)
    for option in (("--size", "96"), ("--stride", "2"), ("--min-hand-area", "0.01")):
        with pytest.raises(InputError, match=rf"{option[0].strip('-').replace('-', '_')}.*rm -r"):
            run_build(tree, tmp_path, *option)
    assert finished_parts(tmp_path) == before
    run_build(tree, tmp_path, "--seed", "1")  # the same pairs, dealt out anew
    assert samples(tmp_path).keys() == samples(built).keys()


@pytest.mark.parametrize("after", [0, 1, 4, 7, 9])
def test_a_full_disk_is_named_and_nothing_is_lost(tree, built, tmp_path, monkeypatch, after):
    calls = 0
    fsync = os.fsync

    def fail(file):
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(output.os, "fsync", fail)
    with pytest.raises(InputError, match=rf"{tmp_path}.*No space left.*GB free.*same command again"):
        run_build(tree, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(output.os, "fsync", fsync)
    run_build(tree, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(built)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_must_not_be_written_is_named(tree, tmp_path, monkeypatch, code):
    def fail(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(InputError, match=rf"--out {tmp_path}: cannot be written \({os.strerror(code)}\)"):
        run_build(tree, tmp_path)


def test_what_a_killed_build_left_is_no_part_of_the_next(tree, built, tmp_path):
    folder = tmp_path / ".parts"
    run_share(tree, tmp_path, "1/1")
    record = folder / sorted(ALL_PARTS)[0]
    record.unlink()  # killed between a part's pictures and its record
    record.with_suffix(".tar").write_bytes(b"half")
    (folder / ".x.tar.0.tmp").write_bytes(b"half")
    (tmp_path / ".train-000000.tar.0.tmp").write_bytes(b"half")
    (tmp_path / "train-000099.tar").write_bytes(b"of another seed")
    run_build(tree, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(built)
    assert not list(tmp_path.glob(".*"))


def test_a_remote_remover_sends_full_batches_and_keeps_the_order():
    requests = [request(number) for number in range(7)]
    sent = []

    def remove(batch):
        sent.append([one.key for one in batch])
        return list(OpenCVRemover()(batch))

    answers = list(launch.RemoteRemover(remove, 3)(iter(requests)))
    assert sent == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    for one, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(one.hoi[~one.hole], answer.obj[~answer.hole])


def request(number: int) -> RemovalRequest:
    hand = np.zeros((64, 64), bool)
    hand[20:30, 20:30] = True
    return RemovalRequest(str(number), np.full((64, 64, 3), number, np.uint8), hand, hand, ~hand)


def test_the_model_stays_with_the_parent(tree, built, tmp_path, monkeypatch):
    """Workers must not need to open it: here, only this process can."""
    monkeypatch.setattr(launch.RemoverChoice, "open", lambda *_: OpenCVRemover())
    manifest = run_build(tree, tmp_path, "--remover", "diffusion", "--workers", "2", "--remover-batch-size", "2")
    assert (manifest["remover"], manifest["sdedit"], manifest["remover_seed"]) == ("diffusion", 0.05, 0)
    here, there = samples(tmp_path), samples(built)
    assert here.keys() == there.keys()
    for key, sample in here.items():
        np.testing.assert_array_equal(sample.obj, there[key].obj)


def test_a_workers_fault_is_the_builds(tree, tmp_path, monkeypatch):
    """A model that fails, and a folder that vanishes under the workers."""

    class Broken:
        def __call__(self, requests):
            raise InputError("--remover-batch-size 2: too much")

    monkeypatch.setattr(launch.RemoverChoice, "open", lambda *_: Broken())
    with pytest.raises(InputError, match="too much"):
        run_build(tree, tmp_path, "--remover", "diffusion")
    assert finished_parts(tmp_path) == set()


def test_ray_is_an_extra(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"--engine ray: .*hoi_lightning\[ray\]"):
        run_build(tree, tmp_path, "--engine", "ray")


def test_parts_and_shards_agree(built):
    manifest = json.loads((built / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (built / shard["name"]).read_bytes()
        assert len(data) % 10240 == 0
        assert not data[-1024:].strip(b"\0")
