"""One choice of sampler over this package's own (DDPM, DDIM, RePaint) and diffusers' multistep solvers.

What is known of x0 is put into the predicted x0 of every step. Its noised part then follows the forward process,
whatever the sampler, and comes out as it was given. The rest learns of it late: of two numbers with correlation 0.9,
one fixed at 2, the other's mean should be 1.8 and is 0.9 with DDIM at any number of steps; RePaint's resampling makes
it 1.7 at 25 steps.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from hoi_lightning.diffusion.ddpm import Denoiser, Noise, sample_ddim, sample_ddpm
from hoi_lightning.diffusion.repaint import sample_repaint
from hoi_lightning.diffusion.schedule import NoiseSchedule
from hoi_lightning.diffusion.steps import MultistepStep, sample_steps
from hoi_lightning.errors import InputError

Sampler = Literal["ddpm", "ddim", "dpm-solver++", "unipc", "repaint"]

_JUMPS = 25  # RePaint's jumps over a whole chain; T = 250 and j = 10 in the paper
_VISITS = 10  # RePaint's r


def sample(
    denoise: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    num_steps: int,
    noise: Noise,
    sampler: Sampler = "ddim",
    known: Tensor | None = None,
    keep_mask: Tensor | None = None,
) -> Tensor:
    """Sample x0 with trailing timesteps.

    Args:
        denoise: predicts x0.
        x_T: standard normal noise (B, ...).
        schedule: gives ᾱ.
        num_steps: kept timesteps; the network's calls, except with `repaint`, which makes about ten times as many.
        noise: asked by `ddpm` and `repaint` only.
        sampler: `ddim`, `dpm-solver++` and `unipc` are deterministic.
        known: (B, ...), read where keep_mask is not 0.
        keep_mask: broadcastable to x_T, in {0, 1}, 1 = known.

    Raises:
        InputError: `num_steps` is not in 1 … T, or there is no such sampler.
    """
    if sampler not in get_args(Sampler):
        raise InputError(f"sampler {sampler!r}: give one of {', '.join(get_args(Sampler))}")
    timesteps = schedule.timesteps(num_steps)
    if known is None or keep_mask is None:
        known, keep_mask = torch.zeros_like(x_T), torch.zeros_like(x_T)
    kept, clean = keep_mask, known
    x_T = torch.lerp(x_T, schedule.q_sample(known, int(timesteps[0]), x_T), kept)

    def anchored(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(denoise(x_t, t), clean, kept)

    if sampler == "ddpm":
        return sample_ddpm(anchored, x_T, schedule, timesteps, noise)
    if sampler == "ddim":
        return sample_ddim(anchored, x_T, schedule, timesteps, noise)
    if sampler == "repaint":
        jump_length = max(1, num_steps // _JUMPS)
        return sample_repaint(anchored, x_T, schedule, timesteps, noise, known, kept, jump_length, _VISITS)
    return sample_steps(anchored, x_T, timesteps, MultistepStep(sampler, schedule, num_steps))
