"""One step of a sampler towards less noise, along a predicted x0."""

from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hoi_lightning.diffusion.ddpm import Denoiser, Noise, batch_of, ddim_step
from hoi_lightning.diffusion.schedule import NoiseSchedule

Multistep = Literal["dpm-solver++", "unipc"]

_LEAST_SIGNAL = 2**-24  # of ᾱ: multistep solvers take its logarithm; diffusers' own substitute for 0


class Step(Protocol):
    """What walks down a chain of timesteps."""

    def __call__(self, x_t: Tensor, x0: Tensor, t: int, previous: int) -> Tensor:
        """Move x_t (B, ...) to the next kept time, `previous`, along x0 (B, ...) predicted from it; -1 = clean."""
        ...

    def reset(self) -> None:
        """Forget earlier steps, which after a jump back to more noise are another path's."""
        ...


class DDIMStep:
    """DDIM, and with eta = 1 DDPM's ancestral step.

    Args:
        schedule: gives ᾱ.
        noise: asked only if eta > 0.
        eta: see `ddim_step`.
    """

    def __init__(self, schedule: NoiseSchedule, noise: Noise, eta: float = 0.0) -> None:
        self.schedule, self.noise, self.eta = schedule, noise, eta

    def __call__(self, x_t: Tensor, x0: Tensor, t: int, previous: int) -> Tensor:
        """One step."""
        return ddim_step(x_t, x0, self.schedule, t, previous, self.noise, self.eta)

    def reset(self) -> None:
        """It remembers nothing."""


class MultistepStep:
    """DPM-Solver++ (Lu et al. 2211.01095) or UniPC (Zhao et al. 2302.04867) by diffusers, deterministic.

    Args:
        kind: which.
        schedule: gives ᾱ.
        num_steps: of the chain, with trailing timesteps.
    """

    def __init__(self, kind: Multistep, schedule: NoiseSchedule, num_steps: int) -> None:
        self.kind, self.schedule, self.num_steps = kind, schedule, num_steps
        self._solver: Any = None

    def __call__(self, x_t: Tensor, x0: Tensor, t: int, previous: int) -> Tensor:
        """One step; the first after a reset is of first order."""
        if self._solver is None:
            self._solver = self._begin(t)
        return self._solver.step(x0, t, x_t).prev_sample

    def reset(self) -> None:
        """Forget earlier predictions."""
        self._solver = None

    def _begin(self, t: int) -> Any:
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        solver: Any = (DPMSolverMultistepScheduler if self.kind == "dpm-solver++" else UniPCMultistepScheduler)(
            self.schedule.num_train_timesteps, prediction_type="sample"
        )
        solver.set_timesteps(self.num_steps)
        # diffusers' own trailing times are, by rounding, one too many for every fifteenth count, and not quite ours
        solver.timesteps = self.schedule.timesteps(self.num_steps)
        alpha_bar = self.schedule.alpha_bar[solver.timesteps].clamp(min=_LEAST_SIGNAL)
        solver.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), alpha_bar.new_zeros(1)]).float()
        solver.set_begin_index(solver.timesteps.tolist().index(t))
        return solver


def sample_steps(denoise: Denoiser, x_T: Tensor, timesteps: Tensor, step: Step) -> Tensor:
    """Walk from x_T to the last prediction of x0.

    Args:
        denoise: predicts x0.
        x_T: (B, ...) at the first of the timesteps.
        timesteps: int64 (S,), descending.
        step: from one to the next.
    """
    x = x_T
    for t, previous in pairwise([*timesteps.tolist(), -1]):
        x = step(x, denoise(x, batch_of(t, x)), t, previous)
    return x
