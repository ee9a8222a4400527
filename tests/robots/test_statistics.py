"""Statistics gathered in parts, and scaling by them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flagscale_vla.config.data import Normalization
from flagscale_vla.robots.statistics import (
    Gatherer,
    RobotStatistics,
    Statistics,
    make_scaler,
    no_statistics,
    statistics_from_json,
    statistics_to_json,
)

ROWS = np.random.default_rng(0).gamma(2.0, [1.0, 10.0, 1e-3], (5000, 3)).astype(np.float32)
KEYS = [f"k{number}" for number in range(5000)]


def gather(parts: list[slice], kept_rows: int = 65_536) -> Statistics:
    whole = Gatherer(3, kept_rows)
    for part in parts:
        gatherer = Gatherer(3, kept_rows)
        gatherer.add(KEYS[part], ROWS[part])
        whole.merge(gatherer)
    return whole.finish()


def test_they_are_numpys() -> None:
    statistics = gather([slice(0, 5000)])
    exact = ROWS.astype(np.float64)
    assert statistics.count == 5000
    assert statistics.width == 3
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, exact.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(statistics.min, exact.min(axis=0))
    np.testing.assert_allclose(statistics.max, exact.max(axis=0))
    np.testing.assert_allclose(statistics.q01, np.quantile(exact, 0.01, axis=0))
    np.testing.assert_allclose(statistics.q99, np.quantile(exact, 0.99, axis=0))


def test_parts_make_the_whole() -> None:
    whole = gather([slice(0, 5000)])
    parts = gather([slice(0, 7), slice(7, 8), slice(8, 3000), slice(3000, 5000)])
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        ours, theirs = (object.__getattribute__(entry, name) for entry in (whole, parts))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_a_large_offset_costs_no_digits() -> None:
    gatherer = Gatherer(1)
    rows = (np.random.default_rng(0).normal(size=(1000, 1)) + 10_000).astype(np.float32)
    for start in range(0, 1000, 100):
        gatherer.add(KEYS[start : start + 100], rows[start : start + 100])
    np.testing.assert_allclose(gatherer.finish().std, rows.astype(np.float64).std(axis=0), rtol=1e-9)


def test_kept_rows_are_a_fair_choice_that_no_split_changes() -> None:
    few = gather([slice(0, 5000)], kept_rows=1000)
    assert few.q99 == gather([slice(2500, 5000), slice(0, 2500)], kept_rows=1000).q99
    np.testing.assert_allclose(few.q99, np.quantile(ROWS, 0.99, axis=0), rtol=0.15)


@pytest.mark.parametrize("kind", list(Normalization))
def test_scaling_and_back_is_the_identity(kind: Normalization) -> None:
    scaler = make_scaler(gather([slice(0, 5000)]), kind)
    np.testing.assert_allclose(scaler.unnormalize(scaler.normalize(ROWS)), ROWS, rtol=1e-4, atol=1e-6)
    assert scaler.normalize(ROWS).dtype == np.float32


def test_mean_std_gives_unit_values_and_quantiles_the_unit_range() -> None:
    statistics = gather([slice(0, 5000)])
    unit = make_scaler(statistics, Normalization.mean_std).normalize(ROWS)
    np.testing.assert_allclose(unit.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(unit.std(axis=0), 1, atol=1e-4)
    ranged = make_scaler(statistics, Normalization.quantile).normalize(ROWS)
    np.testing.assert_allclose(np.quantile(ranged, [0.01, 0.99], axis=0), [[-1] * 3, [1] * 3], atol=1e-4)


@pytest.mark.parametrize("kind", list(Normalization))
def test_a_constant_dim_becomes_zero_and_a_rare_one_stays_bounded(kind: Normalization) -> None:
    rows = np.zeros((1000, 3), np.float32)
    rows[:, 0] = 0.7
    rows[3, 1] = 1.0
    rows[:, 2] = np.random.default_rng(0).normal(size=1000)
    gatherer = Gatherer(3)
    gatherer.add(KEYS[:1000], rows)
    scaler = make_scaler(gatherer.finish(), kind)
    scaled = scaler.normalize(rows)
    np.testing.assert_allclose(scaled[:, 0], 0, atol=1e-5)
    assert np.abs(scaled).max() < 50
    np.testing.assert_allclose(scaler.unnormalize(scaled), rows, atol=1e-5)


def test_they_survive_json() -> None:
    statistics = {"sawyer": RobotStatistics(state=gather([slice(0, 50)]), action=no_statistics())}
    assert statistics_from_json(json.loads(json.dumps(statistics_to_json(statistics)))) == statistics
