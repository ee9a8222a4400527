"""The plan: every sample once per epoch, little padding, and nothing but its arguments decides."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale_vla.data.plan import Plan, plan_epoch


def mixed_lengths(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(40, 601, count)


@pytest.mark.parametrize("capacity", [600, 1024, 2560])
def test_an_epoch_covers_each_sample_once_within_rows(capacity: int) -> None:
    lengths = mixed_lengths(3000)
    plan = plan_epoch(lengths, capacity, seed=0, epoch=0)
    packs = [plan.pack(number) for number in range(plan.num_packs)]
    assert sorted(np.concatenate(packs).tolist()) == list(range(3000))
    assert all(0 < lengths[pack].sum() <= capacity for pack in packs)


@pytest.mark.parametrize(("capacity", "most"), [(1024, 0.03), (2560, 0.015), (16384, 0.01)])
def test_mixed_lengths_leave_little_padding(capacity: int, most: float) -> None:
    lengths = mixed_lengths(20_000)
    plan = plan_epoch(lengths, capacity, seed=1, epoch=0)
    assert 1 - lengths.sum() / (plan.num_packs * capacity) < most


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = mixed_lengths(500)
    plans = [plan_epoch(lengths, 1024, seed, epoch) for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert np.array_equal(plans[0].samples, plans[1].samples)
    assert np.array_equal(plans[0].ends, plans[1].ends)
    assert not np.array_equal(plans[0].samples, plans[2].samples)
    assert not np.array_equal(plans[0].samples, plans[3].samples)


def test_neighbours_in_a_shard_are_spread_over_packs() -> None:
    plan = plan_epoch(np.full(10_000, 100), 1000, seed=0, epoch=0)
    spans = [np.ptp(plan.pack(number)) for number in range(plan.num_packs)]
    assert np.mean(spans) > 7000


def test_packs_are_found_at_any_number_over_epochs() -> None:
    lengths = mixed_lengths(300)
    inorder = Plan(lengths, 1024, seed=0)
    per_epoch = [inorder.epoch(epoch).num_packs for epoch in range(3)]
    numbers = list(range(sum(per_epoch)))
    expected = [
        (epoch, inorder.epoch(epoch).pack(n).tolist()) for epoch, count in enumerate(per_epoch) for n in range(count)
    ]
    for order in (numbers, numbers[::-1]):
        plan = Plan(lengths, 1024, seed=0)
        found = {number: plan.pack(number) for number in order}
        assert [(found[n][0], found[n][1].tolist()) for n in numbers] == expected


def test_a_row_may_hold_a_single_sample() -> None:
    plan = plan_epoch(np.asarray([64]), 64, seed=0, epoch=5)
    assert plan.num_packs == 1
    with pytest.raises(ValueError, match="no samples"):
        Plan(np.empty(0, np.int64), 64, seed=0)


def test_many_samples_are_planned_in_seconds() -> None:
    start = time.perf_counter()
    plan_epoch(mixed_lengths(200_000), 16384, seed=0, epoch=0)
    assert time.perf_counter() - start < 5
