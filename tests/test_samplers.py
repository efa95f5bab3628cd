"""Laws of the choice of sampler, of fixed parts and of guidance, on data whose perfect network is known."""

from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from hoi_lightning.diffusion.ddpm import Noise, SampleNoise, ddim_step, sample_ddim, sample_seeds
from hoi_lightning.diffusion.guided import guide, mix
from hoi_lightning.diffusion.samplers import Sampler, sample
from hoi_lightning.diffusion.schedule import NoiseSchedule
from hoi_lightning.diffusion.steps import Multistep, MultistepStep
from hoi_lightning.errors import InputError

SAMPLERS = get_args(Sampler)
COSINE = NoiseSchedule("squaredcos_cap_v2")


def perfect(cov: Tensor, mean: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x0 | x_t] where x0 is normal with this covariance (D, D)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = float(COSINE.alpha_bar[int(t[0])])
        noisy = alpha_bar * cov + (1 - alpha_bar) * torch.eye(len(cov))
        gain = alpha_bar**0.5 * cov @ torch.linalg.inv(noisy)
        return mean + (x_t - alpha_bar**0.5 * mean) @ gain.T

    return denoise


def draw(denoise: Callable, sampler: Sampler, steps: int, count: int = 1000, **known: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise: Noise = lambda like: torch.randn(like.shape, generator=generator)  # noqa: E731
    return sample(denoise, noise(torch.empty(count, 2)), COSINE, steps, noise, sampler, **known)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_finds_mean_and_spread(sampler: Sampler) -> None:
    drawn = draw(perfect(0.25 * torch.eye(2), mean=3.0), sampler, 20 if sampler == "repaint" else 50)
    torch.testing.assert_close(drawn.mean(dim=0), torch.full((2,), 3.0), atol=0.08, rtol=0)
    spread = 0.4 if sampler == "repaint" else 0.5  # resampling costs it some
    torch.testing.assert_close(drawn.std(dim=0), torch.full((2,), spread), atol=0.05, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++", "unipc"])
def test_deterministic_samplers_go_from_the_same_noise_to_the_same_place(sampler: Sampler) -> None:
    denoise = perfect(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    there = draw(denoise, "ddim", 1000, count=16)
    torch.testing.assert_close(draw(denoise, sampler, 100, count=16), there, atol=0.06, rtol=0)
    coarse = draw(denoise, sampler, 10, count=16)
    assert (coarse - there).abs().mean() > (draw(denoise, sampler, 100, count=16) - there).abs().mean()


@pytest.mark.parametrize("sampler", ["dpm-solver++", "unipc"])
def test_higher_orders_need_fewer_steps(sampler: Sampler) -> None:
    denoise = perfect(torch.eye(2) / 9)
    there = draw(denoise, "ddim", 1000, count=16)
    errors = [(draw(denoise, name, 15, count=16) - there).abs().mean() for name in (sampler, "ddim")]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("steps", [1, 48, 61, 112, 201, 944, 1000])
@pytest.mark.parametrize("kind", get_args(Multistep))
def test_a_solver_walks_our_timesteps_and_ends_clean(kind: Multistep, steps: int) -> None:
    """Anew at each time, its step is DDIM's between two of ours; all in a row end at the perfect network's answer."""
    x0, noise = torch.tensor([[2.0, -1.0]]), SampleNoise([0])
    walk, alone = (MultistepStep(kind, COSINE, steps) for _ in range(2))
    x, times = noise(x0), [*COSINE.timesteps(steps).tolist(), -1]
    for t, previous in pairwise(times):
        alone.reset()
        expected = ddim_step(x, x0, COSINE, t, previous, noise)
        torch.testing.assert_close(alone(x, x0, t, previous), expected, atol=1e-3, rtol=0)
        x = walk(x, x0, t, previous)
    torch.testing.assert_close(x, x0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_few_and_many_steps_are_finite_and_a_row_is_its_own(sampler: Sampler) -> None:
    def crooked(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x_t) + 0.3 * torch.cos(t / 100)[:, None]

    for steps in (5, 37):
        seeds = sample_seeds(0, range(4))
        rows = [sample(crooked, noise(torch.empty(len(s), 2)), COSINE, steps, noise, sampler)
                for s in (seeds, seeds[2:3]) for noise in [SampleNoise(s)]]  # fmt: skip
        assert rows[0].isfinite().all()
        assert torch.equal(rows[0][2:3], rows[1])
    if sampler != "repaint":
        assert draw(crooked, sampler, 1000, count=1).isfinite().all()


def test_the_number_of_steps_is_checked() -> None:
    for sampler in SAMPLERS:
        with pytest.raises(InputError, match="num_steps=1001"):
            draw(perfect(torch.eye(2)), sampler, 1001, count=1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_network_sees_fixed_numbers_at_the_level_of_the_others(sampler: Sampler) -> None:
    levels, scaled = [], []

    def spy(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = float(COSINE.alpha_bar[int(t[0])])
        levels.append(alpha_bar)
        scaled.append(((x_t[:, 0] - alpha_bar**0.5 * 2) / (1 - alpha_bar) ** 0.5).mean().item())
        return torch.zeros_like(x_t)

    known = {"known": torch.tensor([[2.0, 0.0]]).expand(400, 2), "keep_mask": torch.tensor([[1.0, 0.0]]).expand(400, 2)}
    drawn = draw(spy, sampler, 10, count=400, **known)
    torch.testing.assert_close(drawn[:, 0], torch.full((400,), 2.0), atol=1e-5, rtol=0)
    assert max(abs(value) for value in scaled) < 0.25, "mean of 400 standard normal numbers"
    assert max(levels) > 0.9


def test_resampling_tells_the_free_numbers_of_the_fixed_ones() -> None:
    denoise = perfect(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    known = {"known": torch.tensor([[2.0, 0.0]]).expand(500, 2), "keep_mask": torch.tensor([[1.0, 0.0]]).expand(500, 2)}
    drawn = draw(denoise, "repaint", 25, count=500, **known)[:, 1]
    assert drawn.mean().item() == pytest.approx(1.8, abs=0.15)
    assert drawn.std().item() == pytest.approx(0.19**0.5, abs=0.1)
    assert draw(denoise, "ddim", 100, count=500, **known)[:, 1].mean() < 1.2


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++", "repaint"])
def test_a_low_energy_draws_samples_and_rows_stay_their_own(sampler: Sampler) -> None:
    goal = torch.tensor([1.5, -1.0])
    denoise = perfect(torch.eye(2))
    guided = guide(denoise, COSINE, lambda x: 20 * (x - goal).square().sum(dim=1))
    drawn = draw(guided, sampler, 15, count=200)
    assert (drawn - goal).norm(dim=1).mean() < 0.35
    assert drawn.std(dim=0).max() < 0.5 < draw(denoise, sampler, 15, count=200).std(dim=0).min()
    x_t, t = torch.randn(3, 2), torch.full((3,), 400)
    torch.testing.assert_close(guided(x_t[1:2], t[1:2]), guided(x_t, t)[1:2])
    flat = guide(denoise, COSINE, lambda x: 0 * x.sum(dim=1))
    torch.testing.assert_close(draw(flat, sampler, 9, count=5), draw(denoise, sampler, 9, count=5))


def test_classifier_free_guidance_is_linear_in_its_scale() -> None:
    one, other = perfect(torch.eye(2), mean=1.0), perfect(torch.eye(2), mean=-1.0)
    x, t = torch.randn(4, 2), torch.full((4,), 300)
    assert torch.equal(mix(one, other, 1.0)(x, t), other(x, t) + (one(x, t) - other(x, t)))
    assert torch.equal(mix(one, other, 0.0)(x, t), other(x, t))
    torch.testing.assert_close(mix(one, other, 3.0)(x, t), 3 * one(x, t) - 2 * other(x, t))


def test_ddim_of_this_choice_is_ddim() -> None:
    denoise, noise = perfect(torch.eye(2) / 4), SampleNoise(sample_seeds(0, range(4)))
    x_T = noise(torch.empty(4, 2))
    expected = sample_ddim(denoise, x_T, COSINE, COSINE.timesteps(10), noise)
    assert torch.equal(sample(denoise, x_T, COSINE, 10, noise, "ddim"), expected)
