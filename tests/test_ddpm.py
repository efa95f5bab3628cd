"""Laws of the samplers, and step-by-step equality with diffusers' schedulers."""

from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import Tensor

from hoi_lightning.diffusion.ddpm import Noise, SampleNoise, ddim_step, sample_ddim, sample_ddpm, sample_seeds
from hoi_lightning.diffusion.schedule import NoiseSchedule, PredictionType, Spacing


def seeded_noise(seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)


def no_noise(like: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def gaussian_denoiser(schedule: NoiseSchedule, mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x0 | x_t] if x0 is N(mean, std²): the perfect network for that data."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar[t].reshape(-1, *(1,) * (x_t.dim() - 1)).to(x_t.dtype)
        gain = alpha_bar.sqrt() * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        return mean + gain * (x_t - alpha_bar.sqrt() * mean)

    return denoise


def crooked_network(x_t: Tensor, t: Tensor) -> Tensor:
    """Some output that depends on everything."""
    return torch.sin(3 * x_t) + 0.3 * torch.cos(t / 100).reshape(-1, *(1,) * (x_t.dim() - 1)).to(x_t.dtype)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_steps_equal_diffusers(prediction_type: PredictionType, eta: float, spacing: Spacing) -> None:
    reference = diffusers.DDIMScheduler(
        1000, clip_sample=False, prediction_type=prediction_type, timestep_spacing=spacing
    )
    reference.set_timesteps(10)
    schedule = NoiseSchedule()
    times = schedule.timesteps(10, spacing)
    noise = seeded_noise(0)
    x = noise(torch.empty(2, 3, dtype=torch.float64))
    for t, previous in zip(times.tolist(), [*times.tolist()[1:], -1], strict=True):
        output, z = crooked_network(x, torch.tensor([t, t])), noise(x)
        expected = reference.step(output, t, x, eta=eta, variance_noise=z).prev_sample
        x0 = schedule.to_x0(output, x, t, prediction_type)
        x = ddim_step(x, x0, schedule, t, previous, lambda _, z=z: z, eta)
        torch.testing.assert_close(x, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [7, 10])
def test_ancestral_sampling_equals_diffusers(spacing: Spacing, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = diffusers.DDPMScheduler(
        1000, variance_type="fixed_small", clip_sample=False, prediction_type="sample", timestep_spacing=spacing
    )
    reference.set_timesteps(num_steps)
    theirs = seeded_noise(1)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda shape, **_: theirs(torch.empty(shape, dtype=torch.float64)),
    )
    schedule = NoiseSchedule()
    times = schedule.timesteps(num_steps, spacing)
    x_T = seeded_noise(0)(torch.empty(2, 3, dtype=torch.float64))
    expected = x_T
    for t in reference.timesteps:
        expected = reference.step(crooked_network(expected, t.expand(2)), t, expected).prev_sample
    sampled = sample_ddpm(crooked_network, x_T, schedule, times, seeded_noise(1))
    torch.testing.assert_close(sampled, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_ddim_with_full_noise_is_ancestral_sampling(zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule(zero_terminal_snr=zero_terminal_snr)
    times = schedule.timesteps(25)
    x_T = seeded_noise(0)(torch.empty(3, 5, dtype=torch.float64))
    ancestral = sample_ddpm(crooked_network, x_T, schedule, times, seeded_noise(1))
    torch.testing.assert_close(sample_ddim(crooked_network, x_T, schedule, times, seeded_noise(1), eta=1.0), ancestral)


def test_the_last_step_is_the_prediction() -> None:
    schedule = NoiseSchedule()
    x_t, x0 = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ddim_step(x_t, x0, schedule, 40, -1, no_noise, eta=1.0), x0)


def test_ddim_without_noise_inverts_the_noising_of_one_point() -> None:
    schedule = NoiseSchedule()
    x0, eps = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = schedule.q_sample(x0, 800, eps)
    torch.testing.assert_close(ddim_step(x, x0, schedule, 800, 300, no_noise), schedule.q_sample(x0, 300, eps))
    times = torch.tensor([800, 300, 20])
    torch.testing.assert_close(sample_ddim(lambda *_: x0, x, schedule, times, no_noise), x0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samplers_reach_a_gaussian(sampler: str) -> None:
    schedule, mean, std, count = NoiseSchedule("squaredcos_cap_v2"), 1.5, 0.4, 4000
    times, noise = schedule.timesteps(100), seeded_noise(0)
    x_T = noise(torch.empty(count, 1, dtype=torch.float64))
    denoise = gaussian_denoiser(schedule, mean, std)
    if sampler == "ddpm":
        x = sample_ddpm(denoise, x_T, schedule, times, noise)
    else:
        x = sample_ddim(denoise, x_T, schedule, times, no_noise)
    # 5 standard errors, and the discretisation of 100 steps.
    assert abs(x.mean().item() - mean) < 5 * std / count**0.5 + 0.01
    assert abs(x.std().item() - std) < 5 * std / (2 * count) ** 0.5 + 0.01


def test_the_network_sees_a_time_per_row() -> None:
    schedule = NoiseSchedule()
    seen = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return x_t

    times = schedule.timesteps(4)
    sample_ddim(denoise, torch.zeros(3, 2), schedule, times, no_noise)
    assert seen == [[t] * 3 for t in times.tolist()]


def test_a_rows_noise_is_its_seeds_own() -> None:
    seeds = sample_seeds(0, range(4))
    together = SampleNoise(seeds)
    rows = [together(torch.empty(4, 3, 5)) for _ in range(3)]
    shuffled = SampleNoise([seeds[i] for i in (2, 0)])
    for drawn in rows:
        again = shuffled(torch.empty(2, 3, 5))
        assert torch.equal(again[0], drawn[2])
        assert torch.equal(again[1], drawn[0])
    assert not torch.equal(rows[0], rows[1])


def test_noise_is_the_same_in_any_precision() -> None:
    full = SampleNoise([1, 2])(torch.empty(2, 7))
    half = SampleNoise([1, 2])(torch.empty(2, 7, dtype=torch.bfloat16))
    assert torch.equal(half, full.bfloat16())


def test_noise_is_standard_normal() -> None:
    noise = SampleNoise(sample_seeds(3, range(2000)))(torch.empty(2000, 10)).double()
    assert abs(noise.mean().item()) < 5 / 20000**0.5
    assert abs(noise.std().item() - 1) < 5 / 40000**0.5
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 5 / 2000**0.5


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds"):
        SampleNoise([1, 2])(torch.empty(3, 1))


def test_seeds_belong_to_seed_and_index() -> None:
    seeds = sample_seeds(7, range(1000))
    assert sample_seeds(7, [5, 900]) == [seeds[5], seeds[900]]
    assert len({*seeds, *sample_seeds(8, range(1000))}) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_all_bits_of_a_seed_count() -> None:
    low, high = SampleNoise([5]), SampleNoise([5 + 2**32])
    assert not torch.equal(low(torch.empty(1, 8)), high(torch.empty(1, 8)))
