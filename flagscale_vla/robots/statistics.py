"""Statistics of a robot's states and actions: gathered in one pass in any number of parts, then used to scale them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.data import Normalization
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.sketch import Sketch
from flagscale_vla.robots.sums import ExactSums

QUANTILES = (0.01, 0.99)
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
    quantile_error: tuple[float, ...] = ()
    """how far `q01` and `q99` may be from the true ones; empty in statistics from before there was a bound"""

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
    """Plain dicts and lists, by robot. What has no `quantile_error` reads as it did before there was one."""

    def write(part: Statistics) -> dict[str, object]:
        return {key: value for key, value in asdict(part).items() if key != "quantile_error" or value}

    return {name: {"state": write(entry.state), "action": write(entry.action)} for name, entry in statistics.items()}


def statistics_from_json(entries: Mapping[str, Mapping[str, Mapping[str, object]]]) -> dict[str, RobotStatistics]:
    """The inverse of `statistics_to_json`.

    Raises:
        TypeError: a field is missing or unknown.
    """
    return {
        name: RobotStatistics(**{kind: statistics_from_entry(part) for kind, part in entry.items()})
        for name, entry in entries.items()
    }


def statistics_from_entry(entry: Mapping[str, object]) -> Statistics:
    """Of one vector, from what JSON made of it.

    Raises:
        TypeError: a field is missing or unknown.
    """
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Statistics(**fields)  # type: ignore[arg-type]


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


def constant_dims(statistics: Statistics, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the dims that hardly change at all and so are only shifted, whichever way values are scaled."""
    low, high = np.asarray(statistics.min), np.asarray(statistics.max)
    constant = np.asarray(statistics.std) <= smallest_spread(low, high)
    return tuple(name for name, still in zip(names, constant, strict=True) if still)


def find_constants(
    statistics: Mapping[str, RobotStatistics], robots: Mapping[str, Embodiment]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(robot, `state` or `action`, names) wherever dims hardly change at all."""
    for name, entry in statistics.items():
        parts = (("state", entry.state, robots[name].state), ("action", entry.action, robots[name].action))
        for kind, part, dims in parts:
            if part.count and (names := constant_dims(part, dims)):
                yield name, kind, names


class Gatherer:
    """Gathers `Statistics` of vectors in any number of parts, in any order: the result is the same to the last bit.

    Memory and what `to_arrays` gives do not grow past a bound; see `robots.sketch` for the error of the quantiles.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.sums = ExactSums(width)
        self.sketches = tuple(Sketch() for _ in range(width))
        self._min = np.full(width, np.inf)
        self._max = np.full(width, -np.inf)

    @property
    def count(self) -> int:
        """Rows taken in."""
        return self.sums.count

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in rows f32[n, A0] with n at least 1.

        Raises:
            ValueError: another width, or a number that is not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width or not np.isfinite(rows).all():
            raise ValueError(f"rows of shape {list(rows.shape)} must be finite numbers f32[n, {self.width}]")
        self.sums.add(rows)
        for sketch, column in zip(self.sketches, rows.astype(np.float32).T, strict=True):
            sketch.add(column)
        self._min = np.minimum(self._min, rows.min(axis=0))
        self._max = np.maximum(self._max, rows.max(axis=0))

    def merge(self, other: Gatherer) -> None:
        """Take in what another gatherer of the same robot has seen.

        Raises:
            ValueError: it has another width.
        """
        if other.width != self.width:
            raise ValueError(f"statistics of {other.width} dims cannot join those of {self.width}")
        self.sums.merge(other.sums)
        for ours, theirs in zip(self.sketches, other.sketches, strict=True):
            ours.merge(theirs)
        self._min = np.minimum(self._min, other._min)
        self._max = np.maximum(self._max, other._max)

    def quantiles(self, share: float) -> tuple[Values, Values]:
        """(quantile, bound of its error) of each dim, f64[A0]; at least one row must have been taken in."""
        pairs = np.asarray([sketch.quantile(share) for sketch in self.sketches]).reshape(self.width, 2)
        return np.clip(pairs[:, 0], self._min, self._max), pairs[:, 1]

    def finish(self) -> Statistics:
        """What was gathered; at least one row must have been."""
        mean, std = self.sums.moments()
        (q01, first), (q99, last) = (self.quantiles(share) for share in QUANTILES)
        return Statistics(
            count=self.count,
            mean=mean,
            std=std,
            min=tuple(self._min.tolist()),
            max=tuple(self._max.tolist()),
            q01=tuple(q01.tolist()),
            q99=tuple(q99.tolist()),
            quantile_error=tuple(np.maximum(first, last).tolist()),
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as plain arrays, to be kept in a `.npz`."""
        return {
            "count": np.asarray(self.count, np.int64),
            "sums": self.sums.parts,
            "range": np.stack([self._min, self._max]),
            "shifts": np.asarray([sketch.shift for sketch in self.sketches], np.int32),
            "sizes": np.asarray([len(sketch.keys) for sketch in self.sketches], np.int32),
            "keys": np.concatenate([sketch.keys for sketch in self.sketches]).astype(np.int32),
            "counts": np.concatenate([sketch.counts for sketch in self.sketches]),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Gatherer:
        """The inverse of `to_arrays`."""
        gatherer = Gatherer(len(arrays["shifts"]))
        gatherer.sums.count, gatherer.sums.parts = int(arrays["count"]), arrays["sums"].copy()
        gatherer._min, gatherer._max = arrays["range"]
        ends = np.cumsum(arrays["sizes"])[:-1]
        parts = zip(np.split(arrays["keys"].astype(np.int64), ends), np.split(arrays["counts"], ends), strict=True)
        for sketch, shift, (keys, counts) in zip(gatherer.sketches, arrays["shifts"].tolist(), parts, strict=True):
            sketch.shift, sketch.keys, sketch.counts = shift, keys, counts
        return gatherer


def hash_rank(key: str) -> int:
    """A 64-bit hash that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
