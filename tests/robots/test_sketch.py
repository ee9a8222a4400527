"""The sketch: its bound holds for any data, and nothing but the data decides what it says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale_vla.robots.sketch import BUCKETS, WORST_ERROR, Sketch
from flagscale_vla.robots.sums import ExactSums

SHARES = (0.0, 0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0)
GENERATOR = np.random.default_rng(0)
DATA: dict[str, NDArray[np.float32]] = {
    "normal": GENERATOR.normal(size=200_000).astype(np.float32),
    "far from zero": (GENERATOR.normal(size=200_000) + 10_000).astype(np.float32),
    "two sides": np.concatenate([-GENERATOR.gamma(2, 1, 50_000), GENERATOR.gamma(2, 1e-4, 50_000)]).astype(np.float32),
    "few values": GENERATOR.choice([-0.5, -0.0, 0.0, 0.25], 100_000).astype(np.float32),
    "all magnitudes": (GENERATOR.choice([-1, 1], 300_000) * 10 ** GENERATOR.uniform(-44, 38, 300_000)).astype(
        np.float32
    ),
    "one": np.asarray([3.5], np.float32),
}


def sketch_of(values: NDArray[np.float32], buckets: int = BUCKETS) -> Sketch:
    sketch = Sketch(buckets)
    sketch.add(values)
    return sketch


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("buckets", [BUCKETS, 100])
def test_a_quantile_is_as_near_as_it_says(name: str, buckets: int) -> None:
    values = DATA[name]
    sketch = sketch_of(values, buckets)
    assert len(sketch.keys) <= buckets
    assert sketch.count == len(values)
    for share in SHARES:
        true = np.quantile(values.astype(np.float64), share)
        found, error = sketch.quantile(share)
        assert abs(found - true) <= error + 1e-9 * abs(true), share


@pytest.mark.parametrize("name", DATA)
def test_its_error_is_bounded_whatever_comes(name: str) -> None:
    sketch = sketch_of(DATA[name])
    low, high = sketch.bounds()
    # Below the normal numbers a float32 itself has few bits; the bucket at zero spans both signs.
    size = np.maximum(np.abs(low + high) / 2, 2 * np.finfo(np.float32).tiny)
    assert ((high - low) / 2 <= WORST_ERROR * size).all()


@pytest.mark.parametrize("name", ["few values", "one"])
def test_few_different_values_are_exact(name: str) -> None:
    for share in SHARES:
        assert sketch_of(DATA[name]).quantile(share) == (np.quantile(DATA[name].astype(np.float64), share), 0.0)


def test_a_normal_distribution_is_known_to_a_thousandth() -> None:
    sketch = sketch_of(DATA["normal"])
    for share in (0.01, 0.99):
        value, error = sketch.quantile(share)
        assert error <= abs(value) / 1000


def test_merging_in_any_order_gives_equal_bits() -> None:
    values = np.concatenate([DATA["normal"], DATA["all magnitudes"]])
    whole = sketch_of(values)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        cuts = np.sort(generator.integers(0, len(values), 7))
        merged = Sketch()
        for part in generator.permutation(8):
            merged.merge(sketch_of(np.split(values, cuts)[part]))
        assert merged.shift == whole.shift
        np.testing.assert_array_equal(merged.keys, whole.keys)
        np.testing.assert_array_equal(merged.counts, whole.counts)


def test_a_histogram_counts_every_number() -> None:
    edges = np.linspace(-3, 3, 13)
    counts = sketch_of(DATA["normal"]).histogram(edges)
    inside = np.clip(DATA["normal"], -2.99, 2.99)
    expected, _ = np.histogram(inside, edges)
    assert counts.sum() == len(DATA["normal"])
    np.testing.assert_allclose(counts, expected, atol=100)


@pytest.mark.parametrize("name", ["normal", "far from zero", "two sides", "few values"])
def test_sums_lose_nothing(name: str) -> None:
    values = DATA[name]
    whole, parts = ExactSums(1), ExactSums(1)
    whole.add(values[:, None])
    for part in np.array_split(values[::-1], 5):
        other = ExactSums(1)
        other.add(part[:, None])
        parts.merge(other)
    assert whole.moments() == parts.moments()
    (mean,), (std,) = whole.moments()
    np.testing.assert_allclose(mean, values.astype(np.float64).mean(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(std, values.astype(np.float64).std(), rtol=1e-11)


def test_sums_of_extreme_numbers_are_right() -> None:
    tiny, largest = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    sums = ExactSums(2)
    sums.add(np.asarray([[tiny, largest], [tiny, largest], [-tiny, -largest], [3 * tiny, largest]], np.float32))
    means, stds = sums.moments()
    assert means == (float(tiny), float(largest) / 2)
    np.testing.assert_allclose(stds, [np.sqrt(2) * float(tiny), np.sqrt(0.75) * float(largest)], rtol=1e-12)
