"""Guidance of any denoiser at test time: by an energy on x0, and by a second denoiser that sees less (classifier-free).

An energy E stands for a likelihood exp(-E). Where x0 given x_t is about N(x̂0, σ² I), the mode of the posterior is the
minimum of |x - x̂0|² / 2σ² + E(x). Its search needs no derivative of the network, which is called as often as without.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hoi_lightning.diffusion.ddpm import Denoiser
from hoi_lightning.diffusion.schedule import NoiseSchedule

Energy = Callable[[Tensor], Tensor]
"""Samples (B, ...) → differentiable energies (B,); no sample's energy depends on another sample."""

_ITERATIONS = 8
_REACH = 0.5  # largest move of one iteration, in standard deviations of the data


def guide(denoise: Denoiser, schedule: NoiseSchedule, energy: Energy, spread: float = 0.2) -> Denoiser:
    """Move each predicted x0 to where it and a low energy agree.

    Args:
        denoise: predicts x0 of unit variance.
        schedule: gives ᾱ; σ² = 1 - ᾱ_t is the variance of x0 given x_t for normal data.
        energy: of x0.
        spread: least σ, so that the last steps are guided too.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        x0 = denoise(x_t, t)
        alpha_bar = float(schedule.alpha_bar[int(t[0])])
        return _posterior_mode(x0, energy, max(1 - alpha_bar, spread**2))

    return guided


def mix(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance on x0 (Ho & Salimans 2022): scale 1 = conditional, more = away from unconditional."""

    def mixed(x_t: Tensor, t: Tensor) -> Tensor:
        base = unconditional(x_t, t)
        return base + scale * (conditional(x_t, t) - base)

    return mixed


def _posterior_mode(x0: Tensor, energy: Energy, variance: float) -> Tensor:
    """Damped fixed-point iterations of x = x̂0 - σ²·∇E(x), rows (B, ...) on their own."""
    x = x0.detach()
    for _ in range(_ITERATIONS):
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf)
        move = (x0 - variance * gradient - x) / 2
        length = move.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.dim() - 1))
        x = x + move * (_REACH / length.clamp(min=_REACH))
    return x
