"""Laws of an epoch's order and shares: every sample once, the same from any position, for any number of ranks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoi_lightning.data.order import EvaluationSteps, Permutation, Shares, TrainingSteps

seeds = st.integers(0, 2**63 - 1)
sizes = st.integers(1, 400)
worlds = st.integers(1, 5)


def steps_of(n: int, batch: int, world: int, epoch: int = 0, position: int = 0) -> list[list[list[int]]]:
    """Batches of each rank."""
    return [
        [
            indices.tolist()
            for _, indices in TrainingSteps(
                Shares(n, batch, rank, world), lambda e: Permutation(n, 7, e), epoch, position
            )
        ]
        for rank in range(world)
    ]


@given(sizes, seeds, st.integers(0, 1000))
def test_a_permutation_is_one(n: int, seed: int, epoch: int) -> None:
    order = Permutation(n, seed, epoch)
    whole = order.take(np.arange(n))
    assert sorted(whole) == list(range(n))
    assert [order[k] for k in range(n)] == whole.tolist()


@given(st.integers(1, 2**40), seeds, st.data())
@settings(max_examples=50)
def test_any_position_alone_is_that_of_many(n: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    order = Permutation(n, seed, 3)
    found = order.take(np.array(positions))
    assert found.tolist() == [order[k] for k in positions]
    assert ((found >= 0) & (found < n)).all()


def test_all_orders_of_four_come_up_evenly() -> None:
    counts = Counter(tuple(Permutation(4, seed, 0).take(np.arange(4))) for seed in range(2400))
    assert len(counts) == 24
    assert max(counts.values()) < 160  # 100 are expected, 60 is six standard deviations


def test_seed_and_epoch_decide() -> None:
    orders = {tuple(Permutation(50, seed, epoch).take(np.arange(50))) for seed in range(9) for epoch in range(9)}
    assert len(orders) == 81


@given(sizes, st.integers(1, 40), worlds)
def test_an_epoch_is_every_sample_once_in_as_many_batches_on_each_rank(n: int, batch: int, world: int) -> None:
    if n < world:
        return
    ranks = steps_of(n, batch, world)
    assert sorted(i for rank in ranks for indices in rank for i in indices) == list(range(n))
    lengths = np.array([[len(indices) for indices in rank] for rank in ranks])  # ragged ranks would raise
    assert lengths.min() >= 1
    assert lengths.max() <= max(batch, 2 if batch == 1 else 0)
    assert (lengths.max(0) - lengths.min(0)).max() <= 1
    assert lengths[:, :-2].size == 0 or (lengths[:, :-2] == batch).all()


@given(st.integers(2, 200), st.integers(1, 17), worlds, st.integers(0, 300))
def test_going_on_at_any_batch_gives_the_rest(n: int, batch: int, world: int, stop: int) -> None:
    if n < world:
        return
    shares = Shares(n, batch, 0, world)
    stop %= shares.num_steps()
    rest = steps_of(n, batch, world, position=shares.edge(stop))
    assert rest == [rank[stop:] for rank in steps_of(n, batch, world)]


@given(st.integers(1, 200), st.integers(1, 17), worlds, st.integers(1, 17), worlds, st.integers(0, 300))
def test_another_number_of_ranks_goes_on_with_the_samples_that_are_left(
    n: int, batch: int, world: int, other_batch: int, other_world: int, stop: int
) -> None:
    if n < max(world, other_world):
        return
    shares = Shares(n, batch, 0, world)
    stop %= shares.num_steps()
    done = [i for rank in steps_of(n, batch, world) for indices in rank[:stop] for i in indices]
    rest = steps_of(n, other_batch, other_world, position=shares.edge(stop))
    left = [i for rank in rest for indices in rank for i in indices]
    assert {*done} | {*left} == {*range(n)}
    assert not {*done} & {*left}
    assert len({len(rank) for rank in rest}) == 1
    if n - shares.edge(stop) >= other_world:
        assert len(left) == n - len(done)


def test_ranks_together_take_the_order_of_one() -> None:
    one = [i for indices in steps_of(24, 12, 1)[0] for i in indices]
    three = steps_of(24, 4, 3)
    merged = [i for step in zip(*three, strict=True) for group in zip(*step, strict=True) for i in group]
    assert merged == one


def test_each_iteration_is_the_next_epoch() -> None:
    steps = TrainingSteps(Shares(9, 4), lambda e: Permutation(9, 7, e), epoch=2, position=4)
    epochs = [[(epoch, indices.tolist()) for epoch, indices in steps] for _ in range(2)]
    assert {epoch for epoch, _ in epochs[0]} == {2}
    assert {epoch for epoch, _ in epochs[1]} == {3}
    assert sum(len(indices) for _, indices in epochs[0]) == 5
    assert sum(len(indices) for _, indices in epochs[1]) == 9


@given(sizes, st.integers(1, 40), worlds)
def test_evaluation_scores_each_sample_once(n: int, batch: int, world: int) -> None:
    ranks = [EvaluationSteps(Shares(n, batch, rank, world)) for rank in range(world)]
    batches = [[indices for _, indices in steps] for steps in ranks]
    assert [len(found) for found in batches] == [len(steps) for steps in ranks]
    assert sorted(i for found in batches for indices in found for i in indices) == list(range(n))


@pytest.mark.parametrize(("n", "batch", "world"), [(97, 8, 4), (9, 2, 2), (8, 3, 2), (5, 8, 4)])
def test_ranks_that_must_keep_step_have_as_many_batches(n: int, batch: int, world: int) -> None:
    ranks = [EvaluationSteps(Shares(n, batch, rank, world), equal=True) for rank in range(world)]
    sizes = {tuple(len(indices) for _, indices in steps) for steps in ranks}
    assert len(sizes) == 1
    seen = [int(i) for steps in ranks for _, indices in steps for i in indices]
    assert sorted(seen) == list(range(n - n % world))
