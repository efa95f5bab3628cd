"""The build on a real Ray cluster of several nodes on this machine: marker `ray`."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import launch
from tests import hoi4d_tree
from tests.hoi4d_tree import Clip
from tests.test_build import bytes_of, run_build

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # a token that lies in the user's home would be asked of some processes only


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    clips = [Clip(f"ZY20210800001/H1/C2/N{n:02d}/S1/s01/T1", keypoints=n % 3 == 0) for n in range(12)]
    return hoi4d_tree.draw_tree(tmp_path_factory.mktemp("tree"), clips)


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    run_build(tree, out)
    return out


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Cluster:
    """A head without cores, and nodes of one core each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes, port = folder, [], free_port()
        folder.mkdir()
        self.address = f"127.0.0.1:{port}"
        self._start("--head", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=0", "--include-dashboard=false")

    def add_node(self) -> subprocess.Popen:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _start(self, *options: str) -> subprocess.Popen:
        command = [RAY, "start", *options, "--block", "--object-store-memory=100000000", "--disable-usage-stats"]
        log = self.folder / f"node{len(self.processes)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | NO_TOKEN
            )
        self.processes.append(process)
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        return process

    def close(self) -> None:
        for process in reversed(self.processes):
            kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)


def kill(node: subprocess.Popen) -> None:
    """A node with all that runs on it."""
    pids = [node.pid]
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = Path("/tmp") / f"ray{os.getpid()}"  # Ray's sockets need a short path
    one = Cluster(folder)
    yield one
    one.close()


def test_a_cluster_that_loses_a_node_gives_the_same_bytes(tree, built, tmp_path, cluster, monkeypatch):
    nodes = [cluster.add_node(), cluster.add_node()]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for name, value in NO_TOKEN.items():
        monkeypatch.setenv(name, value)
    yielded = 0
    original = launch.make_parts

    def make_parts(*args):
        nonlocal yielded
        for _ in original(*args):
            yielded += 1
            if yielded == 3:
                kill(nodes[0])
            yield

    monkeypatch.setattr(launch, "make_parts", make_parts)
    run_build(tree, tmp_path, "--engine", "ray")
    assert nodes[0].poll() is not None
    assert yielded == 12
    assert bytes_of(tmp_path) == bytes_of(built)
