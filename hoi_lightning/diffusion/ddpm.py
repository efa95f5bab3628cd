"""The reverse process: DDPM's ancestral sampling (eqs. 3-4) and DDIM, on a subset of the times."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hoi_lightning.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t int64 (B,)) → x0 (B, ...): a network call already turned into an x0 prediction."""

Noise = Callable[[Tensor], Tensor]
"""Standard normal noise of its argument's shape, dtype and device; new at every call."""


class SampleNoise:
    """Noise whose row i depends on `seeds[i]` and on how often it was asked, never on the other rows.

    So a sample is bitwise the same in any batch, on any rank, in any order. Drawn on the CPU in fp32, then cast and
    moved, so that it does not depend on the device either.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        """Start one generator per row.

        Args:
            seeds: one non-negative integer per row.
        """
        # NumPy's, because torch's CPU generator reads only the low 32 bits of its seed.
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Draw noise for `like` (B, ...), B = number of seeds."""
        if len(like) != len(self._generators):
            raise ValueError(f"{len(self._generators)} seeds for a batch of {len(like)}")
        rows = [generator.standard_normal(like.shape[1:], dtype=np.float32) for generator in self._generators]
        return torch.from_numpy(np.stack(rows)).to(like.device, like.dtype)


def sample_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """Hash (seed, index) into a 63-bit seed per index; neighbouring indices share nothing.

    Args:
        seed: the run's seed, non-negative.
        indices: global sample indices, non-negative.
    """
    return [int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1) for index in indices]


def ddim_step(
    x_t: Tensor, x0: Tensor, schedule: NoiseSchedule, t: int, previous: int, noise: Noise, eta: float = 0.0
) -> Tensor:
    """Move x_t to an earlier time along a predicted x0 (Song et al. 2021, eq. 12).

    Args:
        x_t: (B, ...).
        x0: (B, ...) prediction from x_t.
        schedule: gives ᾱ.
        t: time of x_t.
        previous: time to reach, < t; -1 is clean data, where the result is x0 exactly.
        noise: asked only where the step is stochastic.
        eta: 0 = deterministic, 1 = the variance of DDPM's posterior.
    """
    now, then = _alpha_bar(schedule, t), _alpha_bar(schedule, previous)
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    eps = (x_t - now**0.5 * x0) / (1 - now) ** 0.5
    x = then**0.5 * x0 + max(1 - then - variance, 0.0) ** 0.5 * eps
    return x + variance**0.5 * noise(x) if variance > 0 else x


def sample_ddim(
    denoise: Denoiser, x_T: Tensor, schedule: NoiseSchedule, timesteps: Tensor, noise: Noise, eta: float = 0.0
) -> Tensor:
    """Run DDIM from x_T to the last prediction of x0.

    Args:
        denoise: predicts x0.
        x_T: (B, ...) at the first of the timesteps.
        schedule: gives ᾱ.
        timesteps: int64 (S,), descending.
        noise: asked only if eta > 0.
        eta: see `ddim_step`.
    """
    x = x_T
    for t, previous in pairwise([*timesteps.tolist(), -1]):
        x = ddim_step(x, denoise(x, batch_of(t, x)), schedule, t, previous, noise, eta)
    return x


def sample_ddpm(denoise: Denoiser, x_T: Tensor, schedule: NoiseSchedule, timesteps: Tensor, noise: Noise) -> Tensor:
    """Sample ancestrally from q(x_s | x_t, x̂_0) of the respaced chain, eqs. 3-4.

    Args:
        denoise: predicts x0.
        x_T: (B, ...) at the first of the timesteps.
        schedule: gives the posterior.
        timesteps: int64 (S,), descending.
        noise: asked at every step but the last.
    """
    x = x_T
    for t, previous in pairwise([*timesteps.tolist(), -1]):
        x, variance = schedule.posterior(denoise(x, batch_of(t, x)), x, t, previous)
        if previous >= 0:
            x = x + variance.sqrt() * noise(x)
    return x


def batch_of(t: int, x: Tensor) -> Tensor:
    """One time for every row of x, int64 (B,)."""
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def _alpha_bar(schedule: NoiseSchedule, t: int) -> float:
    return float(schedule.alpha_bar[t]) if t >= 0 else 1.0
