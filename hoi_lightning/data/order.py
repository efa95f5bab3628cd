"""Which sample comes when: an epoch's order, and its shares for ranks and batches, computable at any position.

The order of an epoch of N samples is a keyed permutation of [0, N): the generalised Feistel cipher of Black and Rogaway
(Ciphers with Arbitrary Finite Domains, CT-RSA 2002, section 6) on pairs (left, right) of [0, a) × [0, b), a·b ≥ N, with
cycle walking for the pairs beyond N. Its round function is the finaliser of SplitMix64 (Steele, Lea and Flood, Fast
Splittable Pseudorandom Number Generators, OOPSLA 2014).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

ROUNDS = 6
_MASK = (1 << 64) - 1

Whole = TypeVar("Whole", int, np.ndarray)


class Permutation:
    """The order of one epoch: a permutation of [0, n) that (seed, epoch) decides.

    Args:
        n: number of samples.
        seed: of the run.
        epoch: counted from 0.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n = n
        self._a = max(math.isqrt(max(n - 1, 0)) + 1, 1)
        self._b = -(-n // self._a)
        key = _mix(_mix(seed & _MASK) ^ (epoch & _MASK))
        self._keys = [_mix(key + i) for i in range(ROUNDS)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.n:
            raise IndexError(position)
        index = self._encrypt(position)
        while index >= self.n:
            index = self._encrypt(index)
        return index

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Samples at positions (M,), int64."""
        indices = self._encrypt(positions.astype(np.uint64))
        while (beyond := indices >= self.n).any():
            indices[beyond] = self._encrypt(indices[beyond])
        return indices.astype(np.int64)

    def _encrypt(self, x: Whole) -> Whole:
        left, right = x % self._a, x // self._a
        for i, key in enumerate(self._keys):
            modulus = self._b if i % 2 else self._a
            left, right = right, (left + _mix(right + key) % modulus) % modulus
        return left + self._a * right  # an even number of rounds leaves the halves where they were


class RepeatedOrder:
    """The order of an epoch in which samples come several times, anywhere in it.

    Args:
        samples: each as often as it comes, int64.
        seed: of the run.
        epoch: counted from 0.
    """

    def __init__(self, samples: np.ndarray, seed: int, epoch: int) -> None:
        self._samples, self._order = samples, Permutation(len(samples), seed, epoch)

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Samples at positions (M,), int64."""
        return self._samples[self._order.take(positions)]


class Order(Protocol):
    """The order of one epoch."""

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Samples at positions (M,), int64."""


@dataclass(frozen=True)
class Shares:
    """How the positions of an epoch are shared out: in global batches, and in each of them to the ranks in turn.

    All ranks have the same number of batches and no batch is empty. Every batch holds `batch_size` samples but the last
    two, which share what is left for them evenly; sizes of one step differ between ranks by one sample at most. Where
    `batch_size` is 1 and the samples cannot be divided by the ranks, the last batch of some ranks holds two.

    Attributes:
        num_samples: N.
        batch_size: samples per batch and rank.
        rank: of this process.
        world_size: number of processes.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def num_steps(self, position: int = 0) -> int:
        """Batches from a position to the epoch's end."""
        width = self.batch_size * self.world_size
        left = self.num_samples - position
        steps = -(-left // width)
        # two batches sharing what is left would leave a rank without a sample
        return steps - 1 if steps > 1 and (left - (steps - 2) * width) // 2 < self.world_size else steps

    def edge(self, step: int, position: int = 0) -> int:
        """Where a step ends that is counted from a position; 0 steps end there."""
        steps = self.num_steps(position)
        if step >= steps:
            return self.num_samples
        width = self.batch_size * self.world_size
        if step < steps - 1 or step == 0:
            return position + step * width
        before_last_two = position + (steps - 2) * width
        return before_last_two + -(-(self.num_samples - before_last_two) // 2)

    def positions(self, low: int, high: int) -> np.ndarray:
        """This rank's positions of a global batch.

        Only where a run goes on with more processes than samples are left of its epoch, some of them get the same one.
        """
        mine = np.arange(low + self.rank, high, self.world_size)
        return mine if len(mine) else np.array([low + self.rank % (high - low)])


class TrainingSteps:
    """Addresses of this rank's batches, epoch by epoch; each iteration is one epoch, the first from where it is told.

    Args:
        shares: of an epoch.
        order: of an epoch, from its number.
        epoch: to begin with.
        position: in that epoch, over all ranks.
    """

    def __init__(self, shares: Shares, order: Callable[[int], Order], epoch: int = 0, position: int = 0) -> None:
        self.shares, self.order = shares, order
        self.epoch, self.position = epoch, position

    def __len__(self) -> int:
        return self.shares.num_steps()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        epoch, start = self.epoch, self.position
        self.epoch, self.position = epoch + 1, 0
        order = self.order(epoch)
        for step in range(self.shares.num_steps(start)):
            low, high = self.shares.edge(step, start), self.shares.edge(step + 1, start)
            yield epoch, order.take(self.shares.positions(low, high))


class EvaluationSteps:
    """Addresses of this rank's batches of a split in order: each sample once over all ranks, none to fill up.

    Args:
        shares: of the split; no rank may be without a sample.
        equal: give every rank as many batches, at the cost of up to world_size - 1 samples at the end.
    """

    def __init__(self, shares: Shares, equal: bool = False) -> None:
        self.shares = shares
        end = shares.num_samples - (shares.num_samples % shares.world_size if equal else 0)
        self._mine = np.arange(shares.rank, end, shares.world_size)

    def __len__(self) -> int:
        return -(-len(self._mine) // self.shares.batch_size)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        size = self.shares.batch_size
        for start in range(0, len(self._mine), size):
            yield 0, self._mine[start : start + size]


def since_last_step(processed: int, per_epoch: int, accumulate: int) -> int:
    """Of an epoch's batches so far, those whose gradients no optimizer step has applied; an epoch ends with a step."""
    return 0 if processed == per_epoch else processed % accumulate


def _mix(x: Whole) -> Whole:
    x = x & _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
