"""Builds that are killed, run out of disk or meet another: marker `faults`."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import hoi4d_tree
from tests.hoi4d_tree import Clip
from tests.test_build import bytes_of

pytestmark = pytest.mark.faults

CAMERAS = ("ZY20210800001", "ZY20210800003", "ZY20210800002")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    clips = [Clip(f"{CAMERAS[n % 3]}/H1/C2/N{n:02d}/S1/s01/T1", keypoints=n % 3 == 0) for n in range(6)]
    return hoi4d_tree.draw_tree(tmp_path_factory.mktemp("tree"), clips)


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert start(tree, out).wait() == 0
    return out


def start(tree: Path, out: Path, *options: str, **popen) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_prep", "build", "--hoi4d", str(tree), "--out", str(out), "--size", "64"]
    command += ["--samples-per-shard", "4", "--workers", "2", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


# What there is to see of a build at the moment it is killed, in the order of its life.
MOMENTS = (
    ".lock",
    ".parts/settings.json",
    ".parts/.*.tmp",
    ".parts/ZY*.tar",
    ".parts/ZY*.json",
    "dropped.jsonl",
    ".train-*.tmp",
    "*-000001.tar",
    "splits.json",
    "manifest.json",
)


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(tree, built, tmp_path):
    """One output, killed at each moment once, and at random ones; what was done stays done."""
    chance = random.Random(0)
    for moment in [*MOMENTS, *[None] * 4]:
        process = start(tree, tmp_path)
        if moment is None:
            time.sleep(chance.uniform(0, 6))
        else:
            while process.poll() is None and not any(tmp_path.glob(moment)):
                time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if moment == MOMENTS[-1]:  # the whole is finished; begin anew
            assert bytes_of_finished(tree, tmp_path) == bytes_of(built)
            (tmp_path / "manifest.json").unlink()
            for path in tmp_path.glob("*.tar"):
                path.unlink()
    assert bytes_of_finished(tree, tmp_path) == bytes_of(built)


def bytes_of_finished(tree: Path, out: Path) -> dict:
    process = start(tree, out)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return bytes_of(out)


def test_a_killed_worker_ends_the_build_in_one_line_and_costs_its_clip_alone(tree, built, tmp_path):
    process = start(tree, tmp_path)
    while not any((tmp_path / ".parts").glob("ZY*.json")):
        time.sleep(0.01)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    victims = [pid for pid in workers if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(victims[0], signal.SIGKILL)
    errors = process.communicate()[1]
    assert process.returncode == 2, errors
    assert "a worker was killed" in errors
    assert "Traceback" not in errors
    assert bytes_of_finished(tree, tmp_path) == bytes_of(built)


def test_a_second_build_is_sent_away(tree, built, tmp_path):
    first = start(tree, tmp_path)
    while not (tmp_path / ".lock").is_file() or not (tmp_path / ".lock").read_text():
        time.sleep(0.01)
    second = start(tree, tmp_path)
    errors = second.communicate()[1]
    assert second.returncode == 2
    assert errors.startswith(f"error: --out {tmp_path}: process {first.pid} on ")
    assert len(errors.splitlines()) == 1
    assert first.wait() == 0
    assert bytes_of(tmp_path) == bytes_of(built)


@pytest.mark.parametrize("limit", [4_000, 15_000])
def test_files_that_may_not_grow(tree, built, tmp_path, limit):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(tree, tmp_path, preexec_fn=no_large_files)
    errors = process.communicate()[1]
    assert process.returncode == 2, errors
    assert "File too large" in errors.splitlines()[-1]
    assert not (tmp_path / "manifest.json").exists()
    assert bytes_of_finished(tree, tmp_path) == bytes_of(built)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_and_a_read_only_disk(tree, built, small_disk):
    process = start(tree, small_disk / "out")
    errors = process.communicate()[1]
    assert process.returncode == 2, errors
    assert "No space left on device" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not (small_disk / "out" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    process = start(tree, small_disk / "out")
    errors = process.communicate()[1]
    assert process.returncode == 2, errors
    assert "cannot be written (Read-only file system)" in errors.splitlines()[-1]
    subprocess.run(["mount", "-o", "remount,rw,size=64M", str(small_disk)], check=True)
    assert bytes_of_finished(tree, small_disk / "out") == bytes_of(built)
