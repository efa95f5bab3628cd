"""Whole batches from shards: decoded by threads into memory that is used again.

Threads suffice, for the decoders release the interpreter lock, and no batch is copied from process to process.
"""

import json
import logging
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hoi_lightning.data.decode import jpeg_into, latents_into, mask_into
from hoi_lightning.data.reader import REMEDY, OnError, Shards, Space
from hoi_lightning.data.sample import MEMBERS, Field
from hoi_lightning.data.shard import IMAGE_MEMBERS, Fault
from hoi_lightning.errors import InputError

AHEAD = 2  # batches that are being decoded while one is used

_MASKS = ("hand", "object")
_logger = logging.getLogger(__name__)


class Steps(Sized, Iterable[tuple[int, np.ndarray]], Protocol):
    """Epoch and samples of each batch; the length is that of a whole epoch."""


class Tally:
    """Decides what a damaged sample means, and counts.

    Args:
        root: folder or URL of the shards, for messages.
        on_error: `raise`, or leave the sample out and go on.
        max_bad_fraction: of the samples; more stop the run. While less than an epoch has been read, of an epoch.
        num_samples: of an epoch.
    """

    def __init__(self, root: str, on_error: OnError, max_bad_fraction: float, num_samples: int) -> None:
        self.root, self.on_error, self.max_bad_fraction = root, on_error, max_bad_fraction
        self.num_samples = num_samples
        self.skipped: dict[str, str] = {}
        self._seen = self._bad = 0

    def add(self, seen: int, faults: Sequence[Fault]) -> None:
        """Count samples that were read, and those of them that are damaged.

        Raises:
            InputError: one is damaged and that is not to be skipped, or too many are.
        """
        self._seen += seen
        if not faults:
            return
        if self.on_error == "raise":
            raise InputError(f"{self.root}/{faults[0]}; {REMEDY}")
        for fault in faults:
            if str(fault) not in self.skipped:
                self.skipped[str(fault)] = fault.key
                _logger.warning("left out: %s/%s", self.root, fault)
        self._bad += sum(fault.samples for fault in faults)
        of = max(self._seen, self.num_samples)
        if self._bad > self.max_bad_fraction * of:
            raise InputError(
                f"{self.root}: {self._bad} of {of} samples are damaged, the last {faults[-1]}; more than "
                f"--data.max_bad_fraction {self.max_bad_fraction}; look at all with `python -m data_prep verify`"
            )


@dataclass
class Batch:
    """A batch being filled: each row by one thread."""

    epoch: int
    indices: np.ndarray
    tensors: dict[str, Tensor]
    arrays: dict[str, np.ndarray]
    keys: list[str]
    categories: list[str]
    without_sdedit: set[int] = field(default_factory=set)
    faults: dict[int, Fault] = field(default_factory=dict)


class BatchReader:
    """Reads batches as uint8 tensors.

    Args:
        shards: where from.
        fields: pictures to decode.
        tally: of damaged samples.
        latents: read the cached latents too.
        pin_memory: for copies to a GPU that do not wait.
    """

    def __init__(
        self, shards: Shards, fields: Sequence[Field], tally: Tally, latents: bool = False, pin_memory: bool = False
    ) -> None:
        self.shards, self.fields, self.tally = shards, tuple(fields), tally
        side = shards.manifest.size
        self._shapes: dict[str, tuple[tuple[int, ...], Any]] = {"layout": ((5,), np.float32)}
        for name in self.fields:
            self._shapes[name] = ((side, side), np.bool_) if name in _MASKS else ((side, side, 3), np.uint8)
        if "hand" in self.fields:
            self._shapes["keypoints"] = ((21, 2), np.float32)
        self._latents: tuple[str, ...] = ()
        if latents:
            self._latents = self._find_latents()
        self._members = [MEMBERS[name] for name in self.fields] + (["json"] if "hand" in self.fields else [])
        if "sdedit" in self.fields and "obj" not in self.fields:
            self._members.append(MEMBERS["obj"])
        self._spaces: list[Space] = []  # that no thread uses
        self._memory = _PinnedMemory() if pin_memory else _Memory()

    def start(self, epoch: int, indices: np.ndarray) -> Batch:
        """Get memory for a batch."""
        count = len(indices)
        tensors, arrays = {}, {}
        for name, (shape, dtype) in self._shapes.items():
            tensors[name], arrays[name] = self._memory.take(count, shape, dtype)
        return Batch(epoch, indices, tensors, arrays, [""] * count, [""] * count)

    def fill(self, batch: Batch, rows: range) -> None:
        """Decode some rows; what is wrong with one is written down."""
        try:
            space = self._spaces.pop()
        except IndexError:  # all are in use
            space = Space()
        for row in rows:
            index = int(batch.indices[row])
            try:
                path, record, batch.categories[row] = self.shards.find(index)
                batch.keys[row] = record["key"].decode()
                batch.arrays["layout"][row] = record["layout"]
                self._decode(self.shards.members(path, record, IMAGE_MEMBERS, self._members, space), row, batch)
                if self._latents:
                    self._decode_latents(index, row, batch, space)
            except (ValueError, OSError) as error:
                batch.faults[row] = Fault(self.shards.tar(index), batch.keys[row], str(error))
        self._spaces.append(space)

    def finish(self, batch: Batch) -> dict[str, Any] | None:
        """The batch as tasks know it, but for the pictures' dtype; None where nothing of it can be read.

        Raises:
            InputError: see `Tally`.
        """
        self.tally.add(len(batch.indices), [batch.faults[row] for row in sorted(batch.faults)])
        tensors = dict(batch.tensors)
        if "keypoints" in tensors:
            tensors["keypoints"].mul_(2).div_(self.shards.manifest.size).sub_(1)  # pixels to NDC
        if batch.without_sdedit and "obj" in tensors:
            rows = sorted(batch.without_sdedit)
            tensors["sdedit"][rows] = tensors["obj"][rows]
        if len(batch.without_sdedit) == len(batch.indices):
            tensors.pop("sdedit")
        result: dict[str, Any] = {
            "key": batch.keys,
            "category": batch.categories,
            "epoch": torch.full((len(batch.indices),), batch.epoch),
            "index": torch.from_numpy(batch.indices),
        }
        result |= {name: _channels_first(name, values) for name, values in tensors.items()}
        if batch.faults:
            sound = [row for row in range(len(batch.indices)) if row not in batch.faults]
            if not sound:
                return None
            result = {
                name: [values[row] for row in sound] if isinstance(values, list) else values[sound]
                for name, values in result.items()
            }
        return result

    def _decode(self, members: dict[str, memoryview], row: int, batch: Batch) -> None:
        for name in self.fields:
            member, out = MEMBERS[name], batch.arrays[name][row]
            if name == "sdedit" and member not in members:
                batch.without_sdedit.add(row)
                if "obj" in self.fields:
                    continue  # it stands in, once it is decoded
                member = MEMBERS["obj"]
            if member not in members:
                raise ValueError(f"member {member} is missing")
            try:
                (mask_into if name in _MASKS else jpeg_into)(members[member], out)
            except ValueError as error:
                raise ValueError(f"{member} {error}") from None
        if "keypoints" in batch.arrays:
            points = json.loads(str(members["json"], "utf-8"))["keypoints"]
            batch.arrays["keypoints"][row] = np.nan if points is None else points

    def _decode_latents(self, index: int, row: int, batch: Batch, space: Space) -> None:
        latents = {name: batch.arrays[f"{name}_latents"][row] for name in self._latents}
        try:
            latents_into(self.shards.read_latents(index, space), latents)
        except ValueError as error:
            raise ValueError(f"{MEMBERS['latents']} {error}") from None

    def _find_latents(self) -> tuple[str, ...]:
        """Names and shapes, from the first sample whose latents can be read."""
        for index in range(len(self.shards)):
            try:
                first = self.shards.latents(index)
            except InputError:
                if self.tally.on_error == "raise" or index + 1 == len(self.shards):
                    raise
                continue
            self._shapes |= {f"{name}_latents": (tuple(code.shape), np.float16) for name, code in first.items()}
            return tuple(first)
        raise InputError(f"{self.shards.root}: no sample is sound; {REMEDY}")


class BatchLoader:
    """Iterable of batches, one epoch at a time.

    Args:
        reader: of the batches.
        steps: what is in them.
        num_threads: that decode; 0 = the caller's own.
        refill: give a batch of which nothing can be read the next sample that can; else it is left out.
    """

    def __init__(self, reader: BatchReader, steps: Steps, num_threads: int, refill: bool) -> None:
        self.reader, self.steps, self.refill = reader, steps, refill
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, "decode") if num_threads else None

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        begun: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for epoch, indices in self.steps:
                begun.append(self._begin(epoch, indices))
                if len(begun) > (AHEAD if self._pool else 0):
                    yield from self._end(*begun.popleft())
            while begun:
                yield from self._end(*begun.popleft())
        finally:  # the consumer may have stopped
            for _, tasks in begun:
                for task in tasks:
                    task.cancel()

    def _begin(self, epoch: int, indices: np.ndarray) -> tuple[Batch, list[Future[None]]]:
        batch = self.reader.start(epoch, indices)
        if self._pool is None:
            self.reader.fill(batch, range(len(indices)))
            return batch, []
        parts = np.array_split(np.arange(len(indices)), min(self.num_threads, len(indices)))
        return batch, [self._pool.submit(self.reader.fill, batch, range(part[0], part[-1] + 1)) for part in parts]

    def _end(self, batch: Batch, tasks: list[Future[None]]) -> Iterator[dict[str, Any]]:
        for task in tasks:
            task.result()
        done = self.reader.finish(batch)
        while done is None and self.refill:  # the tally ends this
            batch = self.reader.start(batch.epoch, (batch.indices[:1] + 1) % len(self.reader.shards))
            self.reader.fill(batch, range(1))
            done = self.reader.finish(batch)
        if done is not None:
            yield done


def _channels_first(name: str, values: Tensor) -> Tensor:
    if name in _MASKS:
        return values[:, None]
    return values.permute(0, 3, 1, 2) if values.dtype == torch.uint8 else values


class _Memory:
    """Arrays that come back when no tensor uses them any more: fresh memory costs a page fault per 4 KB."""

    def __init__(self) -> None:
        self._free: dict[Any, list[np.ndarray]] = {}
        self._rows = 0

    def take(self, rows: int, shape: tuple[int, ...], dtype: Any) -> tuple[Tensor, np.ndarray]:
        """An array (rows, *shape) of whatever values, and as a tensor."""
        self._rows = max(self._rows, rows)
        free = self._free.setdefault((shape, dtype), [])
        try:
            whole = free.pop()
        except IndexError:
            whole = np.empty((0, *shape), dtype)
        if len(whole) < rows:
            whole = np.empty((self._rows, *shape), dtype)
        view = whole[:rows]  # lives as long as any tensor on it
        weakref.finalize(view, free.append, whole).atexit = False
        return torch.from_numpy(view), view


class _PinnedMemory:
    """Page-locked arrays; torch's allocator gives them out again when the copies from them have ended."""

    def take(self, rows: int, shape: tuple[int, ...], dtype: Any) -> tuple[Tensor, np.ndarray]:
        """An array (rows, *shape) of whatever values, and as a tensor."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        tensor = torch.empty((rows, *shape), dtype=kind, pin_memory=True)
        return tensor, tensor.numpy()
