"""Packing through a pool: every sample once, little padding, and rows whose neighbours cost about the same."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale_vla.data.pooled import BAND, BLOCK, arrange, pack_pooled, row_costs


def mixed_lengths(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Many short samples and some long ones."""
    generator = np.random.default_rng(seed)
    short, long = generator.lognormal(5.8, 0.5, count), generator.lognormal(8.0, 0.6, count)
    return np.where(generator.random(count) < 0.4, short, long).clip(40, 8192).astype(np.int64)


@pytest.mark.parametrize("size", [1, 2, 64, 1000, 5000])
@pytest.mark.parametrize("capacity", [8192, 16384])
def test_each_sample_is_in_one_row_and_rows_are_within_capacity(capacity: int, size: int) -> None:
    lengths = mixed_lengths(2000)
    rows = pack_pooled(lengths.tolist(), capacity, size)
    assert sorted(sample for row in rows for sample in row) == list(range(2000))
    assert all(0 < lengths[row].sum() <= capacity for row in rows)


def test_no_samples_make_no_rows() -> None:
    assert pack_pooled([], 100, 8) == []
    assert pack_pooled([100], 100, 8) == [[0]]


@pytest.mark.parametrize(("size", "most"), [(64, 0.01), (1000, 0.006)])
@pytest.mark.parametrize("capacity", [8192, 16384])
def test_little_is_padding(capacity: int, size: int, most: float) -> None:
    lengths = mixed_lengths(20_000)
    rows = pack_pooled(lengths.tolist(), capacity, size)
    assert 1 - lengths.sum() / (len(rows) * capacity) < most


def test_a_row_takes_only_what_waits() -> None:
    # Whatever comes later, the first rows are made of the first samples: of those that the pool has let in until then.
    lengths = mixed_lengths(1000)
    rows = pack_pooled(lengths.tolist(), 16384, 32)
    taken = 0
    for row in rows:
        taken += len(row)
        assert max(row) < taken + 32


@pytest.mark.parametrize("size", [4, 64])
def test_a_small_pool_fills_rows_of_many_samples(size: int) -> None:
    lengths = np.random.default_rng(0).integers(60, 75, 6000)
    rows = pack_pooled(lengths.tolist(), 16384, size)
    assert len(rows) <= np.ceil(lengths.sum() / 16384) + 1


def test_samples_of_one_row_are_not_alike_in_length() -> None:
    lengths = np.random.default_rng(0).integers(60, 600, 20_000)
    rows = pack_pooled(lengths.tolist(), 16384, 1000)
    spread = np.mean([lengths[row].std() for row in rows[:-2]])
    assert spread > 0.9 * lengths.std()


def test_a_sample_waits_for_a_bounded_number_of_rows() -> None:
    # A long one that never fits beside others would wait for ever if rows were begun by length alone.
    lengths = mixed_lengths(4000)
    rows = pack_pooled(lengths.tolist(), 8192, 16)
    number = {sample: place for place, row in enumerate(rows) for sample in row}
    entered = np.maximum.accumulate([number[sample] for sample in range(4000)])
    assert max(entered[sample] - number[sample] for sample in range(4000)) < 4 * 16 + 64


def test_a_row_costs_its_length_and_its_attention() -> None:
    lengths = np.asarray([4000, 4192, 8000])
    costs = row_costs(lengths, np.asarray([2, 3]), 8192)
    expected = [8192 + (4000**2 + 4192**2) / 42_000, 8192 + (8000**2 + 192**2) / 42_000]
    np.testing.assert_allclose(costs, expected, rtol=1e-12)


def imbalance(costs: NDArray[np.float64], ranks: int, first: int) -> float:
    """Mean over whole steps of the largest cost by the mean one."""
    whole = costs[-first % ranks :]
    steps = whole[: len(whole) // ranks * ranks].reshape(-1, ranks)
    return float((steps.max(axis=1) / steps.mean(axis=1)).mean())


@pytest.mark.parametrize("first", [0, 5, 48, 1001])
def test_ranks_have_equal_work_wherever_an_era_begins(first: int) -> None:
    costs = np.random.default_rng(0).lognormal(0, 0.2, 5000) + 10
    order = arrange(costs, first)
    assert sorted(order.tolist()) == list(range(5000))
    for ranks in (2, 3, 4, 6, 8, 16, 24, 48):
        assert imbalance(costs[order], ranks, first) < 1 + BAND
        assert imbalance(costs, ranks, first) > imbalance(costs[order], ranks, first)


def test_costs_do_not_rise_over_an_era() -> None:
    costs = np.random.default_rng(0).lognormal(0, 0.2, 10_000) + 10
    order = arrange(costs, 0)
    assert abs(np.corrcoef(np.arange(9000), costs[order][:9000])[0, 1]) < 0.1
    # Rows stay near where they were: nothing waits for more than a block of its band to be full.
    moved = np.abs(np.argsort(order) - np.arange(10_000))
    assert np.median(moved) < 5 * BLOCK


@pytest.mark.parametrize("count", [1, 30, 47, 48, 49, 100])
@pytest.mark.parametrize("first", [0, 1, 47])
def test_few_rows_are_all_given(count: int, first: int) -> None:
    costs = np.random.default_rng(count).random(count) + 1
    assert sorted(arrange(costs, first).tolist()) == list(range(count))
