"""RePaint (Lugmayr et al. 2022): inpainting with a diffusion model, eqs. 9-11, and its resampling.

Eq. 9 as printed noises the known part to the level of x_t, although it is merged with x_{t-1}; here both parts have
the level of x_{t-1}, and at the end the known part is clean. Eq. 11's m is `keep_mask`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args, get_type_hints

from torch import Tensor

from hoi_lightning.diffusion.ddpm import Denoiser, Noise, batch_of
from hoi_lightning.diffusion.schedule import NoiseSchedule
from hoi_lightning.diffusion.steps import DDIMStep, MultistepStep, Step
from hoi_lightning.errors import InputError


@dataclass(frozen=True)
class RePaintSampler:
    """How an inpainting model samples.

    Attributes:
        num_steps: kept timesteps.
        composition: `off` = nothing but the network, `replace` = eqs. 9-11 without resampling, `repaint` = with it.
        jump_length: j, steps of one jump back to more noise.
        jump_n_sample: r, visits of each stretch; 1 = no jumps.
        start_resampling: jump only below this kept step; None = everywhere.
        eta: 0 = deterministic steps (DDIM), 1 = ancestral ones (DDPM, eq. 10).
        scheduler: what the steps between jumps are: DDIM's (with `eta`), or diffusers' multistep solvers.
        guidance_scale: classifier-free guidance by the object picture, 1 = none; as many network calls more.
        attention_guidance: perturbed-attention guidance (Ahn et al. 2403.17377), 0 = none: away from what the network
            paints where its coarsest self-attention is switched off; as many network calls more.
    """

    num_steps: int
    composition: Literal["off", "replace", "repaint"] = "repaint"
    jump_length: int = 5
    jump_n_sample: int = 2
    start_resampling: int | None = None
    eta: float = 1.0
    guidance_scale: float = 1.0
    attention_guidance: float = 0.0
    scheduler: Literal["ddim", "dpm-solver++", "unipc"] = "ddim"

    def __post_init__(self) -> None:
        """Refuse settings that say nothing.

        Raises:
            InputError: naming the first that does not.
        """
        for name in ("composition", "scheduler"):
            choices = get_args(get_type_hints(RePaintSampler)[name])
            if getattr(self, name) not in choices:
                raise InputError(f"{name} {getattr(self, name)!r}: give one of {', '.join(choices)}")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta {self.eta:g}: give 0 (DDIM) to 1 (DDPM)")
        if not 0 <= self.guidance_scale < math.inf:
            raise InputError(f"guidance_scale {self.guidance_scale:g}: give 0 or more; 1 is none")
        if not 0 <= self.attention_guidance < math.inf:
            raise InputError(f"attention_guidance {self.attention_guidance:g}: give 0 (none) or more")
        if self.start_resampling is not None and self.start_resampling < 0:
            raise InputError(f"start_resampling {self.start_resampling}: give 0 or more, or None")

    @property
    def visits(self) -> int:
        """Of each stretch."""
        return self.jump_n_sample if self.composition == "repaint" else 1

    def step(self, schedule: NoiseSchedule, noise: Noise) -> Step:
        """What the scheduler does between two kept timesteps."""
        if self.scheduler == "ddim":
            return DDIMStep(schedule, noise, self.eta)
        return MultistepStep(self.scheduler, schedule, self.num_steps)

    @property
    def network_calls(self) -> int:
        """Of one sample."""
        times = resample_times(self.num_steps, self.jump_length, self.visits, self.start_resampling)
        return num_network_calls(times) * (1 + (self.guidance_scale != 1) + (self.attention_guidance != 0))


Preset = Literal["paper", "balanced", "fast"]
PRESETS: dict[Preset, RePaintSampler] = {
    "paper": RePaintSampler(250, jump_length=10, jump_n_sample=10),  # 2410 network calls
    "balanced": RePaintSampler(50),  # 95
    "fast": RePaintSampler(10, "replace", eta=0.0, attention_guidance=1.0),  # 20
}


def resample_times(
    num_steps: int, jump_length: int = 1, jump_n_sample: int = 1, start_resampling: int | None = None
) -> list[int]:
    """List the noise levels that RePaint visits, as indices into the kept times (0 = the least noisy).

    Every level 0, j, 2j, … below num_steps - j is reached `jump_n_sample` times, by jumping j levels back up.

    Args:
        num_steps: S, number of kept times.
        jump_length: j, levels per jump.
        jump_n_sample: r; 1 = no resampling.
        start_resampling: no jump reaches above this level; None = jumps everywhere.

    Returns:
        From S - 1 to -1 (clean); a step is -1 (a network call) or +j (noise).

    Raises:
        InputError: a number is below 1.
    """
    for name, value in (("num_steps", num_steps), ("jump_length", jump_length), ("jump_n_sample", jump_n_sample)):
        if value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
    highest = num_steps if start_resampling is None else start_resampling
    places = range(0, min(num_steps - jump_length, highest - jump_length + 1), jump_length)
    jumps_left = dict.fromkeys(places, jump_n_sample - 1)
    times = [num_steps - 1]
    while (level := times[-1]) >= 0:
        if jumps_left.get(level, 0) > 0:
            jumps_left[level] -= 1
            times.append(level + jump_length)
        else:
            times.append(level - 1)
    return times


def num_network_calls(times: Sequence[int]) -> int:
    """Count the network calls of a walk from `resample_times`."""
    return sum(after < before for before, after in pairwise(times))


def sample_repaint(
    denoise: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Tensor,
    noise: Noise,
    known: Tensor,
    keep_mask: Tensor,
    jump_length: int = 1,
    jump_n_sample: int = 1,
    start_resampling: int | None = None,
    step: Step | None = None,
) -> Tensor:
    """Sample what is unknown so that it fits what is known.

    Args:
        denoise: predicts x0.
        x_T: (B, ...) at the first of the timesteps.
        schedule: gives ᾱ.
        timesteps: int64 (S,), descending.
        noise: new noise at every call.
        known: (B, ...), clean; read where keep_mask is not 0.
        keep_mask: broadcastable to x_T, in [0, 1], 1 = known.
        jump_length: see `resample_times`.
        jump_n_sample: see `resample_times`.
        start_resampling: see `resample_times`.
        step: between two timesteps; it forgets its past after a jump. None = the stochastic steps of the paper.

    Returns:
        (B, ...), equal to `known` wherever keep_mask is 1.
    """
    kept = timesteps.tolist()[::-1]
    step = step or DDIMStep(schedule, noise, eta=1.0)
    x = x_T
    for level, following in pairwise(resample_times(len(kept), jump_length, jump_n_sample, start_resampling)):
        t = kept[level]
        if following > level:
            # One draw reaches the level of j small steps: the same Gaussian.
            share = float(schedule.alpha_bar[kept[following]] / schedule.alpha_bar[t])
            x = share**0.5 * x + (1 - share) ** 0.5 * noise(x)
            step.reset()
            continue
        previous = kept[following] if following >= 0 else -1
        unknown_part = step(x, denoise(x, batch_of(t, x)), t, previous)  # eq. 10
        known_part = known if previous < 0 else schedule.q_sample(known, previous, noise(known))  # eq. 9
        x = keep_mask * known_part + (1 - keep_mask) * unknown_part  # eq. 11
    return x
