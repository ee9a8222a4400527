"""Statistics gathered in parts, and scaling by them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from flagscale_vla.config.data import Normalization
from flagscale_vla.robots.statistics import (
    Gatherer,
    RobotStatistics,
    Statistics,
    constant_dims,
    find_constants,
    make_scaler,
    no_statistics,
    statistics_from_json,
    statistics_to_json,
)
from tests.samples import SAWYER

ROWS = np.random.default_rng(0).gamma(2.0, [1.0, 10.0, 1e-3], (5000, 3)).astype(np.float32)


def gather(parts: list[slice]) -> Statistics:
    whole = Gatherer(3)
    for part in parts:
        gatherer = Gatherer(3)
        gatherer.add(ROWS[part])
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


def test_parts_in_any_order_make_the_whole_to_the_last_bit() -> None:
    whole = gather([slice(0, 5000)])
    assert gather([slice(0, 7), slice(7, 8), slice(8, 3000), slice(3000, 5000)]) == whole
    assert gather([slice(3000, 5000), slice(8, 3000), slice(0, 8)]) == whole


def test_a_large_offset_costs_no_digits() -> None:
    gatherer = Gatherer(1)
    rows = (np.random.default_rng(0).normal(size=(1000, 1)) + 10_000).astype(np.float32)
    for start in range(0, 1000, 100):
        gatherer.add(rows[start : start + 100])
    np.testing.assert_allclose(gatherer.finish().std, rows.astype(np.float64).std(axis=0), rtol=1e-12)


def test_what_is_kept_is_what_was_gathered() -> None:
    gatherer = Gatherer(3)
    gatherer.add(ROWS[:2000])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **gatherer.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        kept = Gatherer.from_arrays(arrays)
    assert kept.finish() == gatherer.finish()
    for part in (gatherer, kept):
        part.add(ROWS[2000:])
    assert kept.finish() == gatherer.finish() == gather([slice(0, 5000)])


def test_numbers_that_cannot_be_gathered_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be finite numbers f32\[n, 3\]"):
        Gatherer(3).add(np.asarray([[0.0, np.nan, 1.0]], np.float32))
    with pytest.raises(ValueError, match=r"shape \[5, 2\] must be"):
        Gatherer(3).add(np.zeros((5, 2), np.float32))
    with pytest.raises(ValueError, match="2 dims cannot join those of 3"):
        Gatherer(3).merge(Gatherer(2))


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
    gatherer.add(rows)
    scaler = make_scaler(gatherer.finish(), kind)
    scaled = scaler.normalize(rows)
    np.testing.assert_allclose(scaled[:, 0], 0, atol=1e-5)
    assert np.abs(scaled).max() < 50
    np.testing.assert_allclose(scaler.unnormalize(scaled), rows, atol=1e-5)


def test_they_survive_json() -> None:
    statistics = {"sawyer": RobotStatistics(state=gather([slice(0, 50)]), action=no_statistics())}
    assert statistics_from_json(json.loads(json.dumps(statistics_to_json(statistics)))) == statistics


def test_statistics_from_before_there_was_a_bound_are_read_and_written_as_they_were() -> None:
    part = {name: [0.0, 1.0] for name in ("mean", "std", "min", "max", "q01", "q99")}
    old = {"sawyer": {"state": {"count": 2, **part}, "action": {"count": 2, **part}}}
    loaded = statistics_from_json(old)
    assert loaded["sawyer"].state.quantile_error == ()
    assert json.loads(json.dumps(statistics_to_json(loaded))) == old


def test_dims_that_hardly_change_are_named() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    rows[:, 1] = 0.5
    rows[:, 2] = 3 + 1e-6 * rows[:, 2]
    gatherer = Gatherer(4)
    gatherer.add(rows)
    part = gatherer.finish()
    assert constant_dims(part, ("x", "y", "z", "gripper")) == ("y", "z")
    entry = {"sawyer": RobotStatistics(state=no_statistics(), action=part)}
    assert list(find_constants(entry, {"sawyer": SAWYER})) == [("sawyer", "action", SAWYER.action[1:3])]
