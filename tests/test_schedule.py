"""Laws of the noise schedule, and equality with diffusers' tables."""

from itertools import product

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from hoi_lightning.diffusion.schedule import NoiseSchedule, PredictionType, ScheduleKind, Spacing
from hoi_lightning.errors import InputError

KINDS: tuple[ScheduleKind, ...] = ("linear", "scaled_linear", "squaredcos_cap_v2")
SCHEDULES = list(product(KINDS, (False, True)))


def noised(schedule: NoiseSchedule, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some x0, eps and x_t in float64."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(times), 3, 2, generator=generator, dtype=torch.float64)
    return x0, eps, schedule.q_sample(x0, times, eps)


@pytest.mark.parametrize(("kind", "zero_terminal_snr"), SCHEDULES)
def test_tables_equal_diffusers(kind: ScheduleKind, zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule(kind, 1000, 0.00085, 0.012, zero_terminal_snr)
    reference = diffusers.DDIMScheduler(
        1000, 0.00085, 0.012, beta_schedule=kind, rescale_betas_zero_snr=zero_terminal_snr
    )
    assert schedule.alpha_bar.dtype == schedule.betas.dtype == torch.float64
    torch.testing.assert_close(schedule.alpha_bar.float(), reference.alphas_cumprod, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(schedule.betas.float(), reference.betas, atol=1e-6, rtol=2e-4)


@pytest.mark.parametrize(("kind", "zero_terminal_snr"), SCHEDULES)
def test_noise_only_grows(kind: ScheduleKind, zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule(kind, 50, zero_terminal_snr=zero_terminal_snr)
    assert (schedule.alpha_bar.diff() < 0).all()
    assert schedule.alpha_bar[0] < 1
    torch.testing.assert_close((1 - schedule.betas).cumprod(0), schedule.alpha_bar)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_keeps_the_first_time_and_empties_the_last(kind: ScheduleKind) -> None:
    plain, rescaled = NoiseSchedule(kind), NoiseSchedule(kind, zero_terminal_snr=True)
    assert rescaled.alpha_bar[-1] == 0
    torch.testing.assert_close(rescaled.alpha_bar[0], plain.alpha_bar[0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_gives_x0_back(kind: ScheduleKind, prediction_type: PredictionType) -> None:
    schedule = NoiseSchedule(kind)
    times = torch.tensor([0, 1, 500, 990])
    x0, eps, x_t = noised(schedule, times)
    output = schedule.target(x0, eps, times, prediction_type)
    torch.testing.assert_close(schedule.to_x0(output, x_t, times, prediction_type), x0)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_x0_survives_pure_noise(prediction_type: PredictionType) -> None:
    schedule = NoiseSchedule(zero_terminal_snr=True)
    times = torch.tensor([999, 0])
    x0, eps, x_t = noised(schedule, times)
    assert torch.equal(x_t[0], eps[0])
    output = schedule.target(x0, eps, times, prediction_type)
    torch.testing.assert_close(schedule.to_x0(output, x_t, times, prediction_type), x0)


def test_eps_cannot_give_x0_at_pure_noise() -> None:
    schedule = NoiseSchedule(zero_terminal_snr=True)
    x0, eps, x_t = noised(schedule, torch.tensor([0, 998]))
    torch.testing.assert_close(schedule.to_x0(eps, x_t, torch.tensor([0, 998]), "epsilon"), x0)
    for times in (torch.tensor([0, 999]), 999):
        with pytest.raises(ValueError, match="v_prediction"):
            schedule.to_x0(eps, x_t, times, "epsilon")


@pytest.mark.parametrize(("kind", "zero_terminal_snr"), SCHEDULES)
def test_eps_and_velocity_are_the_same_point(kind: ScheduleKind, zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule(kind, zero_terminal_snr=zero_terminal_snr)
    times = torch.tensor([0, 300, 700, 999])
    x0, eps, x_t = noised(schedule, times)
    torch.testing.assert_close(schedule.eps_from_x0(x0, x_t, times), eps)
    # (x_t, v) is (x0, eps) turned by an angle.
    v = schedule.velocity(x0, eps, times)
    torch.testing.assert_close(x_t**2 + v**2, x0**2 + eps**2)


def test_snr_is_signal_over_noise() -> None:
    schedule = NoiseSchedule()
    times = torch.tensor([0, 10, 999])
    x0, eps = torch.ones(2, 3, 1, dtype=torch.float64)
    signal = schedule.q_sample(x0, times, 0 * eps)
    noise = schedule.q_sample(0 * x0, times, eps)
    torch.testing.assert_close(schedule.snr(times), (signal / noise).square().flatten().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    schedule = NoiseSchedule()
    x, times = torch.ones(2, 3, dtype=dtype), torch.tensor([3, 900])
    assert schedule.q_sample(x, times, x).dtype == dtype
    assert schedule.velocity(x, x, times).dtype == dtype
    assert schedule.eps_from_x0(x, x, times).dtype == dtype
    assert schedule.to_x0(x, x, times, "epsilon").dtype == dtype
    assert {value.dtype for value in schedule.posterior(x, x, times)} == {dtype}


def test_one_time_serves_a_whole_batch() -> None:
    schedule = NoiseSchedule()
    x0, eps, _ = noised(schedule, torch.tensor([7, 7]))
    both = schedule.q_sample(x0, torch.tensor([7, 7]), eps)
    assert torch.equal(schedule.q_sample(x0, 7, eps), both)
    assert torch.equal(schedule.q_sample(x0, torch.tensor(7), eps), both)


def test_posterior_ends_at_x0() -> None:
    schedule = NoiseSchedule()
    x0, _, x_t = noised(schedule, torch.tensor([0, 0]))
    mean, variance = schedule.posterior(x0, x_t, torch.tensor([0, 0]))
    torch.testing.assert_close(mean, x0)
    assert (variance == 0).all()


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_posterior_leads_to_the_marginal(zero_terminal_snr: bool) -> None:
    """Averaged over q(x_t | x_0), q(x_s | x_t, x_0) is q(x_s | x_0): the mean of x_t's mean, and total variance."""
    schedule = NoiseSchedule(zero_terminal_snr=zero_terminal_snr)
    times, previous = torch.tensor([5, 600, 999]), torch.tensor([4, 400, 0])
    x0 = torch.full((3, 1), 2.0, dtype=torch.float64)
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    mean, variance = schedule.posterior(x0, schedule.q_sample(x0, times, zero), times, previous)
    slope = schedule.posterior(zero, one, times, previous)[0]
    spread = schedule.q_sample(zero, times, one)
    torch.testing.assert_close(mean, schedule.q_sample(x0, previous, zero))
    torch.testing.assert_close(variance + (slope * spread) ** 2, schedule.q_sample(zero, previous, one) ** 2)


def test_posterior_steps_to_the_previous_time_by_default() -> None:
    schedule = NoiseSchedule()
    times = torch.tensor([1, 999])
    x0, _, x_t = noised(schedule, times)
    for default, explicit in zip(
        schedule.posterior(x0, x_t, times), schedule.posterior(x0, x_t, times, times - 1), strict=True
    ):
        assert torch.equal(default, explicit)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 7, 10, 50, 250, 999, 1000])
def test_timesteps_equal_diffusers(spacing: Spacing, num_steps: int) -> None:
    reference = diffusers.DDIMScheduler(1000, timestep_spacing=spacing)
    reference.set_timesteps(num_steps)
    times = NoiseSchedule().timesteps(num_steps, spacing)
    assert times.dtype == torch.int64
    np.testing.assert_array_equal(times.numpy(), reference.timesteps.numpy())


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_too_many_timesteps_are_refused(num_steps: int) -> None:
    with pytest.raises(InputError, match="num_steps"):
        NoiseSchedule().timesteps(num_steps)
