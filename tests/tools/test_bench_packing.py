"""The benchmark of packing: its other sides pack what they are given, and its goals hold on few samples too."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench_packing import GOALS, imbalance, make_mixes, measure, offline_rows, window_rows


def test_the_other_sides_count_rows_that_hold_everything() -> None:
    lengths = np.asarray([600, 500, 400, 300, 200])
    assert offline_rows(lengths, 1000) == 2
    assert window_rows(lengths, 1000) == 2
    assert window_rows(np.full(32, 600), 1000) == 32


def test_imbalance_is_the_largest_by_the_mean_of_whole_steps() -> None:
    assert imbalance(np.asarray([1.0, 3.0, 2.0, 2.0, 9.0]), 2) == pytest.approx((1.5 + 1.0) / 2)


@pytest.mark.parametrize("pool", [64, 1000])
def test_fill_and_balance_of_every_mix(pool: int) -> None:
    for mix, lengths in make_mixes(6000, 0).items():
        result = measure(mix, lengths, 8192, pool, 0)
        assert result.fill_of_offline > GOALS[pool] - 0.005
        assert result.imbalance[4] < 1.05
