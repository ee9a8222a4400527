"""Statistics of a robot's states and actions: gathered in one pass in any number of parts, then used to scale them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.data import Normalization

KEPT_ROWS = 65_536
"""Rows kept for quantiles: the 1st percentile's rank is then within 0.04 % (one sigma)."""
SMALLEST_SPREAD = 1e-5
"""A dim whose spread is below this share of its largest value counts as constant."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of one vector over all training frames, each f64[A0]."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    @property
    def width(self) -> int:
        """A0."""
        return len(self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotStatistics:
    """Of one robot's states and actions."""

    state: Statistics
    action: Statistics


def no_statistics() -> Statistics:
    """Of a vector that was never seen: it has no dims, so that a use of it fails."""
    return Statistics(count=0, mean=(), std=(), min=(), max=(), q01=(), q99=())


def statistics_to_json(statistics: Mapping[str, RobotStatistics]) -> dict[str, object]:
    """Plain dicts and lists, by robot."""
    return {name: asdict(entry) for name, entry in statistics.items()}


def statistics_from_json(entries: Mapping[str, Mapping[str, Mapping[str, object]]]) -> dict[str, RobotStatistics]:
    """The inverse of `statistics_to_json`.

    Raises:
        TypeError: a field is missing or unknown.
    """

    def read(entry: Mapping[str, object]) -> Statistics:
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        return Statistics(**fields)  # type: ignore[arg-type]

    return {
        name: RobotStatistics(**{kind: read(part) for kind, part in entry.items()}) for name, entry in entries.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaler:
    """Maps a robot's own units to the model's and back: (values - shift) / scale. Both f32[A0]."""

    shift: NDArray[np.float32]
    scale: NDArray[np.float32]

    def normalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """f32[..., A0] in the model's units."""
        return (values - self.shift) / self.scale

    def unnormalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """f32[..., A0] in the robot's own units."""
        return values * self.scale + self.shift


def make_scaler(statistics: Statistics, kind: Normalization) -> Scaler:
    """How values of these statistics are scaled. A constant dim is only shifted, so that it becomes zero."""
    low, high = np.asarray(statistics.min), np.asarray(statistics.max)
    if kind is Normalization.mean_std:
        shift, scale = np.asarray(statistics.mean), np.asarray(statistics.std)
    else:
        q01, q99 = np.asarray(statistics.q01), np.asarray(statistics.q99)
        # A dim that hardly ever moves has equal quantiles; its whole range then stands in.
        rare = q99 - q01 <= smallest_spread(low, high)
        q01, q99 = np.where(rare, low, q01), np.where(rare, high, q99)
        shift, scale = (q01 + q99) / 2, (q99 - q01) / 2
    scale = np.where(scale <= smallest_spread(low, high), 1.0, scale)
    return Scaler(shift=shift.astype(np.float32), scale=scale.astype(np.float32))


def smallest_spread(low: Values, high: Values) -> Values:
    """The spread below which a dim counts as constant, f64[A0]."""
    return SMALLEST_SPREAD * np.maximum(np.maximum(np.abs(low), np.abs(high)), 1e-6)


class Gatherer:
    """Gathers `Statistics` row by row. Parts gathered apart are merged; equal parts in equal order give equal bits.

    Moments are merged as Chan, Golub and LeVeque (1979) do. For quantiles it keeps the rows whose keys have the
    smallest hashes: a uniform choice without repeats that does not depend on order or on how the data was split.
    """

    def __init__(self, width: int, kept_rows: int = KEPT_ROWS) -> None:
        self.width, self.kept_rows = width, kept_rows
        self.count = 0
        self._mean = np.zeros(width)
        self._square = np.zeros(width)
        self._min = np.full(width, np.inf)
        self._max = np.full(width, -np.inf)
        self._rows = np.empty((0, width), np.float32)
        self._ranks = np.empty(0, np.uint64)

    def add(self, keys: list[str], rows: NDArray[np.float32]) -> None:
        """Take in rows f32[n, A0] that belong to `keys`, with n at least 1."""
        values = rows.astype(np.float64)
        mean = values.mean(axis=0)
        self._merge_moments(len(rows), mean, ((values - mean) ** 2).sum(axis=0))
        self._min = np.minimum(self._min, values.min(axis=0))
        self._max = np.maximum(self._max, values.max(axis=0))
        self._keep(rows, np.asarray([hash_rank(key) for key in keys], np.uint64))

    def merge(self, other: Gatherer) -> None:
        """Take in what another gatherer of the same robot has seen."""
        if other.count == 0:
            return
        self._merge_moments(other.count, other._mean, other._square)
        self._min = np.minimum(self._min, other._min)
        self._max = np.maximum(self._max, other._max)
        self._keep(other._rows, other._ranks)

    def finish(self) -> Statistics:
        """What was gathered; at least one row must have been."""
        q01, q99 = np.quantile(self._rows.astype(np.float64), [0.01, 0.99], axis=0)
        std = np.sqrt(self._square / self.count)
        fields = {"mean": self._mean, "std": std, "min": self._min, "max": self._max, "q01": q01, "q99": q99}
        return Statistics(count=self.count, **{name: tuple(value.tolist()) for name, value in fields.items()})

    def _merge_moments(self, count: int, mean: Values, square: Values) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._square = self._square + square + delta**2 * (self.count * count / total)
        self.count = total

    def _keep(self, rows: NDArray[np.float32], ranks: NDArray[np.uint64]) -> None:
        self._rows = np.concatenate([self._rows, rows])
        self._ranks = np.concatenate([self._ranks, ranks])
        if len(self._ranks) > self.kept_rows:
            chosen = np.argpartition(self._ranks, self.kept_rows)[: self.kept_rows]
            self._rows, self._ranks = self._rows[chosen], self._ranks[chosen]


def hash_rank(key: str) -> int:
    """A 64-bit hash that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
