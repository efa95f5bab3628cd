"""The forward process: how much signal and noise a time holds, and what a network's output says about x0."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hoi_lightning.errors import InputError

PredictionType = Literal["epsilon", "sample", "v_prediction"]
ScheduleKind = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["leading", "trailing", "linspace"]


class NoiseSchedule:
    """q(x_t | x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I), the marginal of eqs. 1-2, and its inverses.

    Every method takes x of any shape (B, ...) and integer times of shape (B,), or one time for all; results have x's
    dtype and device. Tables are float64: near t = T most digits of ᾱ are zeros.

    Attributes:
        betas: β_t, float64 (T,) on the CPU.
        alpha_bar: ᾱ_t = Π (1 - β_s), the same.
    """

    def __init__(
        self,
        kind: ScheduleKind = "linear",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
    ) -> None:
        """Tabulate β_t and ᾱ_t.

        Args:
            kind: `linear` (Ho et al. 2020), `scaled_linear` in √β (Stable Diffusion), or `squaredcos_cap_v2`, the
                cosine of Nichol & Dhariwal 2021 with β ≤ 0.999, which ignores `beta_start` and `beta_end`.
            num_train_timesteps: T.
            beta_start: β of the first time.
            beta_end: β of the last time.
            zero_terminal_snr: shift and scale √ᾱ so that the last is exactly 0 and the first unchanged (Lin et al.
                2305.08891); `epsilon` then says nothing about x0 at the last time.
        """
        self.num_train_timesteps = num_train_timesteps
        betas = _betas(kind, num_train_timesteps, beta_start, beta_end)
        alpha_bar = (1 - betas).cumprod(0)
        if zero_terminal_snr:
            root = alpha_bar.sqrt()
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
            betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        self.betas = betas
        self.alpha_bar = alpha_bar
        self._tables: dict[torch.device, Tensor] = {}

    def q_sample(self, x0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """Noise x0 to time t: √ᾱ_t x0 + √(1 - ᾱ_t) eps (eqs. 1-2)."""
        signal, noise = self._signal_noise(t, x0)
        return (signal * x0 + noise * eps).to(x0.dtype)

    def x0_from_eps(self, eps: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """Solve q_sample for x0.

        Raises:
            ValueError: a time has ᾱ = 0 (`zero_terminal_snr`): x_t is eps there, whatever x0 is.
        """
        if self.alpha_bar[-1] == 0 and bool((torch.as_tensor(t) == self.num_train_timesteps - 1).any()):
            raise ValueError("epsilon does not determine x0 where alpha_bar is 0; predict v_prediction or sample")
        signal, noise = self._signal_noise(t, x_t)
        return ((x_t - noise * eps) / signal).to(x_t.dtype)

    def eps_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """Solve q_sample for eps."""
        signal, noise = self._signal_noise(t, x_t)
        return ((x_t - signal * x0) / noise).to(x_t.dtype)

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """Mix v = √ᾱ_t eps - √(1 - ᾱ_t) x0 (Salimans & Ho 2022)."""
        signal, noise = self._signal_noise(t, x0)
        return (signal * eps - noise * x0).to(x0.dtype)

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor | int, prediction_type: PredictionType) -> Tensor:
        """Turn a network's output of any prediction type into its x0.

        Raises:
            ValueError: `epsilon` at a time of ᾱ = 0.
        """
        if prediction_type == "sample":
            return output.to(x_t.dtype)
        if prediction_type == "epsilon":
            return self.x0_from_eps(output, x_t, t)
        signal, noise = self._signal_noise(t, x_t)
        return (signal * x_t - noise * output).to(x_t.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor | int, prediction_type: PredictionType) -> Tensor:
        """What a perfect network would answer at x_t = q_sample(x0, t, eps); `sample` is eq. 5."""
        if prediction_type == "sample":
            return x0
        if prediction_type == "epsilon":
            return eps
        return self.velocity(x0, eps, t)

    def snr(self, t: Tensor | int) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), float32 of t's shape and device."""
        alpha_bar = self._alpha_bar(torch.as_tensor(t))
        return (alpha_bar / (1 - alpha_bar)).float()

    def posterior(
        self, x0: Tensor, x_t: Tensor, t: Tensor | int, previous: Tensor | int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x_0), the reverse step of eqs. 3-4 (Ho et al. 2020, eqs. 6-7).

        Args:
            x0: (B, ...), known or predicted.
            x_t: (B, ...).
            t: times of x_t.
            previous: times s < t, for a respaced chain; -1 is clean data; None = t - 1.

        Returns:
            Mean (B, ...) and variance (B, 1, ...); the variance of a step to -1 is 0.
        """
        t = torch.as_tensor(t, device=x_t.device)
        now = self._like(self._alpha_bar(t), x_t)
        then = self._like(self._alpha_bar(t - 1 if previous is None else torch.as_tensor(previous)), x_t)
        alpha = now / then
        of_x0 = then.sqrt() * (1 - alpha) / (1 - now)
        of_x_t = alpha.sqrt() * (1 - then) / (1 - now)
        variance = (1 - then) / (1 - now) * (1 - alpha)
        precision = _compute_dtype(x_t)
        mean = of_x0.to(precision) * x0 + of_x_t.to(precision) * x_t
        return mean.to(x_t.dtype), variance.to(x_t.dtype)

    def timesteps(self, num_steps: int, spacing: Spacing = "trailing") -> Tensor:
        """Choose the times of a shorter chain, descending int64 (num_steps,), as diffusers' schedulers do.

        Only `trailing` starts at T - 1 and has equal strides at once; Lin et al. (2305.08891) show why it should.

        Raises:
            InputError: `num_steps` is not in 1 … T.
        """
        total = self.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise InputError(f"num_steps={num_steps}: must be between 1 and num_train_timesteps={total}")
        times: np.ndarray
        if spacing == "leading":
            times = np.arange(num_steps)[::-1] * (total // num_steps)
        elif spacing == "linspace":
            times = np.linspace(0, total - 1, num_steps).round()[::-1]
        else:
            times = np.round(total - np.arange(num_steps) * (total / num_steps)) - 1
        return torch.from_numpy(times.astype(np.int64))

    def _alpha_bar(self, t: Tensor) -> Tensor:
        """Look ᾱ_t up in float64 on t's device, ᾱ_{-1} = 1; one copy per device, so that no step waits for the CPU."""
        if t.device not in self._tables:
            self._tables[t.device] = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar]).to(t.device)
        return torch.take(self._tables[t.device], t + 1)

    def _signal_noise(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self._like(self._alpha_bar(torch.as_tensor(t, device=like.device)), like)
        precision = _compute_dtype(like)
        return alpha_bar.sqrt().to(precision), (1 - alpha_bar).sqrt().to(precision)

    @staticmethod
    def _like(values: Tensor, like: Tensor) -> Tensor:
        """Give (B,) or scalar values the number of dimensions of (B, ...)."""
        return values.to(like.device).reshape(-1, *(1,) * (like.dim() - 1))


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _betas(kind: ScheduleKind, count: int, start: float, end: float) -> Tensor:
    if kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    share = torch.arange(count + 1, dtype=torch.float64) / count
    alpha_bar = torch.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
