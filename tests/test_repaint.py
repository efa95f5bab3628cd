"""Laws of RePaint's resampling schedule and composition."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hoi_lightning.diffusion.ddpm import Noise, ddim_step, sample_ddim
from hoi_lightning.diffusion.repaint import RePaintSampler, num_network_calls, resample_times, sample_repaint
from hoi_lightning.diffusion.samplers import sample
from hoi_lightning.diffusion.schedule import NoiseSchedule
from hoi_lightning.diffusion.steps import DDIMStep
from hoi_lightning.errors import InputError

WALKS = [(250, 10, 10), (250, 1, 3), (30, 5, 3), (20, 5, 2), (7, 3, 2), (5, 5, 4), (1, 1, 1), (3, 10, 10)]


def seeded_noise(seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)


def crooked_network(x_t: Tensor, t: Tensor) -> Tensor:
    """Some x0 that depends on everything."""
    return torch.sin(3 * x_t) + 0.3 * torch.cos(t / 100).reshape(-1, *(1,) * (x_t.dim() - 1)).to(x_t.dtype)


@pytest.mark.parametrize(
    ("num_steps", "jump_length", "jump_n_sample", "start_resampling", "calls"),
    [
        (250, 10, 10, None, 2410),
        (250, 10, 5, None, 1210),
        (250, 10, 1, None, 250),
        (250, 1, 10, None, 2491),
        (100, 10, 10, None, 910),
        (100, 10, 5, None, 460),
        (50, 10, 10, None, 410),
        (50, 5, 5, None, 230),
        (50, 5, 2, None, 95),
        (50, 10, 2, None, 90),
        (30, 5, 3, None, 80),
        (20, 5, 2, None, 35),
        (250, 10, 10, 100, 1150),
        (250, 10, 10, 50, 700),
    ],
)
def test_network_calls_of_the_published_walks(
    num_steps: int, jump_length: int, jump_n_sample: int, start_resampling: int | None, calls: int
) -> None:
    assert num_network_calls(resample_times(num_steps, jump_length, jump_n_sample, start_resampling)) == calls


@pytest.mark.parametrize(("num_steps", "jump_length", "jump_n_sample"), WALKS)
def test_a_walk_takes_steps_and_jumps_only(num_steps: int, jump_length: int, jump_n_sample: int) -> None:
    times = resample_times(num_steps, jump_length, jump_n_sample)
    assert (times[0], times[-1]) == (num_steps - 1, -1)
    assert {after - before for before, after in pairwise(times)} <= {-1, jump_length}
    assert max(times) == num_steps - 1
    places = set(range(0, num_steps - jump_length, jump_length))
    jumped = Counter(before for before, after in pairwise(times) if after > before)
    assert jumped == {place: jump_n_sample - 1 for place in places if jump_n_sample > 1}


def test_start_resampling_bounds_the_jumps() -> None:
    tops = [after for before, after in pairwise(resample_times(250, 10, 10, 100)) if after > before]
    assert max(tops) == 100
    assert resample_times(20, 5, 3, start_resampling=0) == resample_times(20)


def test_without_resampling_the_walk_goes_straight_down() -> None:
    assert resample_times(6, jump_length=2) == [5, 4, 3, 2, 1, 0, -1]


@pytest.mark.parametrize("bad", [{"num_steps": 0}, {"jump_length": 0}, {"jump_n_sample": 0}])
def test_numbers_below_one_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        resample_times(**{"num_steps": 5, **bad})


@pytest.mark.parametrize(
    "bad",
    [
        {"composition": "repain"}, {"scheduler": "euler"}, {"eta": 2}, {"eta": -1}, {"start_resampling": -3},
        {"attention_guidance": -1}, {"guidance_scale": math.nan}, {"guidance_scale": -1},
    ],
)  # fmt: skip
def test_settings_of_a_sampler_that_say_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(bad))} .*: give "):
        RePaintSampler(10, **bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_known_everywhere_is_returned_exactly(dtype: torch.dtype, zero_terminal_snr: bool) -> None:
    schedule, noise = NoiseSchedule(zero_terminal_snr=zero_terminal_snr), seeded_noise(0)
    known = noise(torch.empty(2, 4, 3, 3, dtype=dtype))
    keep_mask = torch.ones(2, 1, 3, 3, dtype=dtype)
    x = sample_repaint(crooked_network, noise(known), schedule, schedule.timesteps(10), noise, known, keep_mask, 3, 2)
    assert x.dtype == dtype
    assert torch.equal(x, known)


def test_known_pixels_are_exact_and_unknown_ones_are_painted() -> None:
    schedule, noise = NoiseSchedule(), seeded_noise(0)
    known = noise(torch.empty(2, 4, 6, 6))
    keep_mask = (torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    x = sample_repaint(crooked_network, noise(known), schedule, schedule.timesteps(10), noise, known, keep_mask, 3, 2)
    keep = keep_mask.bool().expand_as(x)
    assert torch.equal(x[keep], known[keep])
    assert (x[~keep] != known[~keep]).all()


def test_what_is_known_under_the_hole_does_not_matter() -> None:
    schedule = NoiseSchedule()
    x_T, known, other = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    keep_mask = torch.tensor([1.0, 0.0, 0.0, 1.0])
    one, two = (
        sample_repaint(crooked_network, x_T, schedule, schedule.timesteps(8), seeded_noise(1), picture, keep_mask, 2, 3)
        for picture in (known, keep_mask * known + (1 - keep_mask) * other)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_nothing_known_and_no_jumps_is_ddim(eta: float) -> None:
    schedule = NoiseSchedule()
    times = schedule.timesteps(10)
    x_T = seeded_noise(0)(torch.empty(2, 3, dtype=torch.float64))
    # RePaint draws for the step, then for the known part: give both samplers the same noise for the steps.
    step_noise, both_noise, draws = seeded_noise(1), seeded_noise(1), []

    def alternate(like: Tensor) -> Tensor:
        draws.append(like)
        return both_noise(like) if eta > 0 and len(draws) % 2 == 1 else torch.ones_like(like)

    painted = sample_repaint(
        crooked_network, x_T, schedule, times, alternate, torch.zeros_like(x_T), torch.zeros(1, 1),
        step=DDIMStep(schedule, alternate, eta),
    )  # fmt: skip
    assert torch.equal(painted, sample_ddim(crooked_network, x_T, schedule, times, step_noise, eta))


def test_known_part_has_the_level_of_what_it_is_merged_with() -> None:
    """With known = 0 and a network that says 0, every visited x_t must be N(0, 1 - ᾱ_t), in both parts."""
    schedule, noise, count = NoiseSchedule(), seeded_noise(0), 20000
    times = schedule.timesteps(6)
    keep_mask = torch.tensor([1.0, 0.0], dtype=torch.float64)
    visited = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        visited.append((int(t[0]), x_t.square().mean(0)))
        return torch.zeros_like(x_t)

    x_T = noise(torch.empty(count, 2, dtype=torch.float64))
    known = torch.zeros_like(x_T)
    x = sample_repaint(
        denoise, x_T * (1 - schedule.alpha_bar[-1]).sqrt(), schedule, times, noise, known, keep_mask, 2, 3
    )
    assert len(visited) == num_network_calls(resample_times(6, 2, 3))
    for t, variance in visited:
        expected = (1 - schedule.alpha_bar[t]).expand(2)
        torch.testing.assert_close(variance, expected, atol=0, rtol=6 * (2 / count) ** 0.5)
    assert (x == 0).all()


@pytest.mark.parametrize(("scheduler", "num_steps"), [("ddim", 200), ("dpm-solver++", 60), ("unipc", 60)])
def test_jumps_preserve_the_marginal_variance(scheduler: Any, num_steps: int) -> None:
    """Data N(0, σ²) and its perfect network: at every level x_t has variance ᾱ_t σ² + 1 - ᾱ_t, jumps or not."""
    schedule, noise, count, std = NoiseSchedule(), seeded_noise(0), 20000, 0.5
    times = schedule.timesteps(num_steps)
    step = RePaintSampler(num_steps, eta=0.0, scheduler=scheduler).step(schedule, noise)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar[t[:1]]
        marginal = alpha_bar * std**2 + 1 - alpha_bar
        variances.append((x_t.var() / marginal).item())
        return alpha_bar.sqrt() * std**2 / marginal * x_t

    variances: list[float] = []
    x_T = noise(torch.empty(count, 1, dtype=torch.float64))
    known, keep_mask = torch.zeros_like(x_T), torch.zeros(1, 1, dtype=torch.float64)
    x = sample_repaint(denoise, x_T, schedule, times, noise, known, keep_mask, 10, 2, step=step)
    variances.append(x.var().item() / std**2)
    # 3 standard errors, and the discretisation of the steps.
    assert max(abs(ratio - 1) for ratio in variances) < 3 * (2 / count) ** 0.5 + 0.07


@pytest.mark.parametrize("scheduler", ["dpm-solver++", "unipc"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_nothing_known_and_no_jumps_is_the_multistep_solver(scheduler: Any, zero_terminal_snr: bool) -> None:
    schedule, x_T = NoiseSchedule(zero_terminal_snr=zero_terminal_snr), seeded_noise(0)(torch.empty(2, 3))
    step = RePaintSampler(10, scheduler=scheduler).step(schedule, seeded_noise(1))
    nothing = torch.zeros_like(x_T), torch.zeros(1, 1)
    x = sample_repaint(crooked_network, x_T, schedule, schedule.timesteps(10), seeded_noise(1), *nothing, step=step)
    assert x.isfinite().all()
    assert torch.equal(x, sample(crooked_network, x_T, schedule, 10, seeded_noise(2), scheduler))


@pytest.mark.parametrize("scheduler", ["dpm-solver++", "unipc"])
def test_after_a_jump_a_solver_begins_anew(scheduler: Any) -> None:
    schedule, x = NoiseSchedule(), seeded_noise(0)(torch.empty(2, 3))
    first, second, third = schedule.timesteps(10).tolist()[3:6]
    step = RePaintSampler(10, scheduler=scheduler).step(schedule, seeded_noise(1))

    def two_steps() -> Tensor:
        between = step(x, crooked_network(x, torch.tensor([first])), first, second)
        return step(between, crooked_network(between, torch.tensor([second])), second, third)

    once = two_steps()
    step.reset()
    assert torch.equal(two_steps(), once)
    step.reset()
    # alone, a multistep solver's step is of first order: DDIM's
    x0 = crooked_network(x, torch.tensor([second]))
    torch.testing.assert_close(step(x, x0, second, third), ddim_step(x, x0, schedule, second, third, seeded_noise(2)))


def test_known_noise_is_new_every_time() -> None:
    schedule, noise = NoiseSchedule(), seeded_noise(0)
    seen = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t / (1 - schedule.alpha_bar[t]).sqrt().reshape(-1, 1))
        return torch.zeros_like(x_t)

    known = torch.zeros(1, 50, dtype=torch.float64)
    sample_repaint(
        denoise, noise(known), schedule, schedule.timesteps(6), noise, known, torch.ones(1, 1).double(), 2, 2
    )
    correlation = torch.corrcoef(torch.cat(seen)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.7
