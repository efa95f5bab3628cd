"""Who makes the parts: processes of this machine. A task is one clip, whoever runs it.

A diffusion model lives once per GPU, apart from the tasks: they hand it batches of their clip's crops, always the same
ones, so that a clip's bytes depend on nothing that runs beside it.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from data_prep.pairing import PairSettings
    from data_prep.remove_hand import HandRemover, RemovalRequest, Removed
    from data_prep.sources import Clip

Engine = Literal["local", "ray"]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

Remove = Callable[[list["RemovalRequest"]], list["Removed"]]


@dataclass(frozen=True)
class RemoverChoice:
    """Which remover to open: the arguments of `open_remover`.

    Attributes:
        name: `opencv` or `diffusion`.
        weights: hub id or folder of the diffusion checkpoint.
        sdedit: noise level of the SDEdit copy, None for none.
        batch_size: crops that the model takes at a time.
        device: `auto`, `cpu`, `cuda`, …
        seed: of its noise.
    """

    name: Literal["opencv", "diffusion"] = "opencv"
    weights: str | None = None
    sdedit: float | None = None
    batch_size: int = 8
    device: str = "auto"
    seed: int = 0

    @property
    def has_model(self) -> bool:
        """Whether it needs a diffusion model, which only one process per GPU can hold."""
        return self.name == "diffusion" or self.sdedit is not None

    @property
    def identity(self) -> dict[str, Any]:
        """What the removed pictures depend on, as manifests and unfinished builds record it."""
        from data_prep.remove_hand import DEFAULT_WEIGHTS

        record = {"remover": self.name, "sdedit": "none" if self.sdedit is None else self.sdedit}
        if not self.has_model:
            return record
        return record | {"remover_weights": self.weights or DEFAULT_WEIGHTS, "remover_seed": self.seed}

    def open(self, size: int) -> "HandRemover":
        """Open it for crops of this side."""
        from data_prep.remove_hand import open_remover

        return open_remover(
            self.name,
            size=size,
            weights=self.weights,
            sdedit=self.sdedit,
            batch_size=self.batch_size,
            device=self.device,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Job:
    """What all clips of a build have in common.

    Attributes:
        settings: what decides the pairs.
        folder: where the parts go; with Ray, a folder that all machines share.
        remover: what removes the hands.
    """

    settings: "PairSettings"
    folder: Path
    remover: RemoverChoice


class RemoteRemover:
    """A `HandRemover` whose model is in another process.

    Args:
        remove: sends a batch there and waits for the answer.
        batch_size: crops in a batch; the last one of a clip may have fewer.
    """

    def __init__(self, remove: Remove, batch_size: int) -> None:
        self.remove, self.batch_size = remove, batch_size

    def __call__(self, requests: Iterable["RemovalRequest"]) -> Iterator["Removed"]:
        """Remove the hands from each crop; reads ahead by one batch."""
        requests = iter(requests)
        while batch := list(islice(requests, self.batch_size)):
            yield from self.remove(batch)


def make_parts(engine: Engine, clips: "Sequence[Clip]", job: Job, workers: int | None) -> Iterator[None]:
    """Make the parts of all clips, in any order; yields once for each that is finished.

    Args:
        engine: `local` for processes here, `ray` for a cluster.
        clips: the clips without a part.
        job: what they have in common.
        workers: clips worked on at a time; None for one per core, of the cluster's where there is one.

    Raises:
        InputError: a worker was lost, or the engine or the remover cannot be opened.
        OSError: a part cannot be written.
    """
    if not clips:
        return
    if engine == "ray":
        from data_prep.launch_ray import make_parts_on_ray

        yield from make_parts_on_ray(clips, job, workers)
        return
    workers = min(workers or os.cpu_count() or 1, len(clips))
    if workers == 1 and not job.remover.has_model:
        for clip in clips:
            make_part(clip, job)
            yield
        return
    yield from _make_parts_here(clips, job, workers)


def make_part(clip: "Clip", job: Job, remove: Remove | None = None) -> None:
    """Make one clip's part: the task.

    Args:
        clip: the clip.
        job: what it has in common with others.
        remove: reaches the model, where the remover has one.
    """
    from data_prep import parts

    with one_thread():
        if job.remover.has_model:
            assert remove is not None
            remover: HandRemover = RemoteRemover(remove, job.remover.batch_size)
        else:
            remover = job.remover.open(job.settings.size)
        parts.write_part(clip, job.settings, remover, parts.part_path(job.folder, clip))


def _make_parts_here(clips: "Sequence[Clip]", job: Job, workers: int) -> Iterator[None]:
    """Processes ask for clips, and for removals where this process holds the model."""
    import multiprocessing
    from multiprocessing.connection import wait

    remover = job.remover.open(job.settings.size) if job.remover.has_model else None
    spawn = multiprocessing.get_context("spawn")
    todo = iter(clips)
    processes, pipes = [], []
    try:
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()  # or its end would not be felt here
            processes.append(process)
            pipes.append(ours)
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                    if isinstance(message, BaseException):
                        raise message
                    if isinstance(message, list):
                        assert remover is not None
                        pipe.send(list(remover(message)))
                        continue
                    if message == "finished":
                        yield
                    clip = next(todo, None)
                    pipe.send(clip)
                    if clip is None:
                        pipes.remove(pipe)
                except (EOFError, ConnectionError):
                    raise InputError(
                        f"--workers {workers}: a worker was killed, probably for want of memory; give the same command "
                        "again with fewer, finished clips are kept"
                    ) from None
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()  # what it has half-written is never taken for a part
            process.join()


def _work(pipe: Connection, job: Job) -> None:
    """What a worker process does until there are no clips any more."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    _die_with_parent()

    def remove(requests: "list[RemovalRequest]") -> "list[Removed]":
        pipe.send(requests)
        return list(pipe.recv())

    pipe.send("ready")
    try:
        while (clip := pipe.recv()) is not None:
            make_part(clip, job, remove)
            pipe.send("finished")
    except Exception as error:
        pipe.send(_picklable(error))


def _picklable(error: Exception) -> Exception:
    """The error with its traceback in words, which a pipe does not carry; users' and disks' errors as they are."""
    if isinstance(error, InputError | OSError):
        return error
    import traceback

    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))


def _die_with_parent() -> None:
    """Without this the workers of a killed build would go on for a while, beside those of the next."""
    import multiprocessing
    import threading

    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread per process: clips run beside each other, and floats do not depend on the machine's cores."""
    import cv2
    import torch

    _keep_memory()
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def _keep_memory() -> None:
    """Let the C library keep what is freed.

    A decoded mask takes 6 MB. Given back, they come anew for the next one, page by page and cleared, which takes half
    as long as decoding.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library than glibc
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    mallopt(_M_TRIM_THRESHOLD, 1 << 26)
