"""Laws of the layout metrics as streams: batches, ranks, intervals, and the energy distance."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from hoi_lightning.metrics import layout, layout_stream
from hoi_lightning.metrics.layout_plots import draw_density, palm_density
from hoi_lightning.metrics.layout_stream import LayoutFigures, instances_of
from hoi_lightning.metrics.rules import rule_shares


def layouts(*shape: int, seed: int = 0) -> torch.Tensor:
    numbers = torch.randn(*shape, 5, generator=torch.Generator().manual_seed(seed))
    b = torch.nn.functional.normalize(numbers[..., 3:], dim=-1)
    return torch.cat([0.5 + 0.1 * numbers[..., :1].tanh(), 0.4 * numbers[..., 1:3], b], dim=-1)


def batch(start: int, end: int) -> tuple[torch.Tensor, dict, torch.Tensor]:
    rows = slice(start, end)
    mask = torch.zeros(10, 1, 32, 32)
    mask[:, :, 12:20, 12:20] = 1
    keys = [f"ZY20210800001_H1_C{i % 2}_N0{i % 4}_S1_s01_T1_f0000{i}" for i in range(10)]
    known = {"key": keys[rows], "layout": layouts(10, seed=1)[rows], "object": mask[rows]}
    return layouts(10, 6)[rows], known, layouts(10, 64, seed=2)[rows]


def fed(*cuts: int) -> LayoutFigures:
    figures = LayoutFigures()
    for start, end in pairwise(cuts):
        figures.update(*batch(start, end))
    return figures


def test_figures_do_not_depend_on_batches_and_are_those_of_the_plain_functions() -> None:
    whole = fed(0, 10).compute()
    cut = fed(0, 3, 4, 10).compute()
    assert whole.keys() == cut.keys()
    torch.testing.assert_close(torch.stack(list(cut.values())), torch.stack(list(whole.values())))
    draws, known, truth = batch(0, 10)
    rate = np.mean([layout.contact_rate(row, mask.bool()) for row, mask in zip(draws, known["object"], strict=True)])
    assert whole["contact"].item() == pytest.approx(rate)
    nearest = [layout.centre_error(row, true).min() for row, true in zip(draws, known["layout"], strict=True)]
    assert whole["centre_error_best"].item() == pytest.approx(float(np.mean(nearest)))
    ious = [layout.splat_iou(row, true).max() for row, true in zip(draws, known["layout"], strict=True)]
    assert whole["proxy_iou_best"].item() == pytest.approx(float(np.mean(ious)), rel=1e-5)
    distances = [layout.energy_distance(row, true) for row, true in zip(draws, truth, strict=True)]
    assert whole["energy_distance"].item() == pytest.approx(float(np.mean(distances)), rel=1e-4)


def test_what_was_not_fed_is_not_told_and_a_reset_forgets() -> None:
    figures = LayoutFigures()
    draws, known, _ = batch(0, 4)
    figures.update(draws, known, None)
    assert "energy_distance" not in figures.compute()
    figures.reset()
    assert figures.compute() == {}


def test_instances_are_what_the_key_says() -> None:
    keys = ["P_H1_C2_N04_S1_s1_T1_f1", "Q_H2_C2_N04_S9_s2_T3_f7", "P_H1_C3_N04_S1_s1_T1_f1"]
    same, again, other = instances_of(keys).tolist()
    assert same == again != other


def test_an_interval_holds_the_mean_and_grows_with_what_instances_differ_by() -> None:
    metric = layout_stream.Diversity()
    instances = torch.arange(20) // 2
    metric.update(layouts(20, 5), instances)
    value = metric.compute()["centre_spread"]
    low, high = metric.intervals()["centre_spread"]
    assert low is not None
    assert high is not None
    assert low < value < high
    alone = layout_stream.Diversity()
    alone.update(layouts(20, 5), torch.zeros(20))
    assert alone.intervals()["centre_spread"] == (None, None)


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    figures = fed(0, 2, 7) if rank == 0 else fed(7, 10)
    found = figures.compute()
    low, _ = figures.energy.intervals()["energy_distance"]
    assert low is not None
    torch.save(found, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_two_ranks_with_uneven_shares_say_what_one_process_says(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)  # this process may have a group of its own
    expected = fed(0, 10).compute()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_the_energy_distance_is_its_definition() -> None:
    x, y = layouts(4).double(), layouts(7, seed=1).double()
    scale = y.std(dim=0)

    def mean(pairs: list) -> float:
        return float(np.mean([((one - other) / scale).norm() for one, other in pairs]))

    between = [(one, other) for one in x for other in y]
    within = [[(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j] for z in (x, y)]
    expected = 2 * mean(between) - mean(within[0]) - mean(within[1])
    assert layout.energy_distance(x, y).item() == pytest.approx(expected)
    assert layout.energy_distance(3 * x + 1, 3 * y + 1).item() == pytest.approx(expected), "units do not matter"


def test_the_energy_distance_of_one_distribution_is_zero_on_average_and_grows_with_a_shift() -> None:
    truth = layouts(512, seed=1)
    same = torch.stack([layout.energy_distance(layouts(32, seed=k), truth) for k in range(2, 40)])
    assert same.mean().abs() < 3 * same.std() / len(same) ** 0.5 + 0.01
    assert same.min() < 0 < same.max()
    shift = torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0])
    moved = [layout.energy_distance(layouts(256, seed=2) + k * shift, truth).item() for k in (0, 1, 3, 6)]
    assert moved == sorted(moved)
    narrow = truth.mean(dim=0) + 0.1 * (layouts(256, seed=3) - truth.mean(dim=0))
    assert layout.energy_distance(narrow, truth) > 0.3, "a model that says the mean is punished"


def test_votes_of_neighbours_find_the_shares_even_of_rules_that_overlap() -> None:
    rng = np.random.default_rng(0)

    def draw(share: float, count: int, gap: float) -> tuple[torch.Tensor, list[str]]:
        first = rng.random(count) < share
        numbers = torch.from_numpy(rng.normal(size=(count, 5)))
        numbers[:, 1] += torch.from_numpy(np.where(first, 0.0, gap))
        return numbers, ["one" if is_first else "other" for is_first in first]

    for gap, tolerance in ((20.0, 1e-9), (1.0, 0.05)):
        true, rules = draw(0.3, 2000, gap)
        sample, own = draw(0.3, 2000, gap)
        shares = rule_shares(sample, true, rules, ["one", "other"])
        assert shares["one"] == pytest.approx(own.count("one") / 2000, abs=max(tolerance, 0.04))
        assert sum(shares.values()) == pytest.approx(1)
    true, rules = draw(0.3, 2000, 20.0)
    assert rule_shares(draw(0.9, 500, 20.0)[0], true, rules, ["one", "other"])["one"] > 0.85


def test_true_layouts_have_the_true_shares_though_one_of_two_overlapping_rules_is_denser() -> None:
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[torch.Tensor, list[str]]:
        dense = rng.random(count) < 0.4
        numbers = rng.normal(size=(count, 5)) * np.where(dense, 0.5, 1.0)[:, None]
        return torch.from_numpy(numbers), ["dense" if is_dense else "wide" for is_dense in dense]

    errors = []
    for _ in range(30):
        true, rules = draw(512)
        errors.append(rule_shares(draw(512)[0], true, rules, ["dense", "wide"])["dense"] - 0.4)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / len(errors) ** 0.5


def test_density_is_the_share_of_palms() -> None:
    pair = torch.tensor([[0.6, -0.5, 0.0, 0.0, 1.0], [0.6, 0.5, 0.0, 0.0, 1.0]])
    density = palm_density(pair.repeat(50, 1), 64)
    assert density[32, 16] == density[32, 48] == 0.5
    assert density[32, 32] == 0
    assert density[60, 16] == 0, "the forearm is no palm"
    picture = np.full((64, 64, 3), 90, np.uint8)
    drawn = draw_density(picture, pair)
    assert (drawn[0, 0] == 90).all()
    assert drawn[32, 16].max() > 200
