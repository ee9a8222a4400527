"""BEAST (Zhou et al., 2025, arXiv 2506.06072): control points of a B-spline through each dim, in equal bins.

The grippers get a spline of their own degree, 0 in the public BEAST-F: steps instead of a smooth curve. Codes go
control point by control point, all dims of one side by side. The range of bins is, for each control point of each dim,
what was met in fitting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from flagscale_vla.action.ranges import RangeGrammar
from flagscale_vla.action.spline import spline
from flagscale_vla.action.stored import WEIGHTS_FILE, Stored, write_stored
from flagscale_vla.action.tokenizer import Codes, CodesError, Floats
from flagscale_vla.action.uniform import from_bins, to_bins
from flagscale_vla.action.units import Units
from flagscale_vla.robots.layout import Kind, parts_of

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeastSettings:
    """The public code's are degree 4, gripper_degree 0, bins 256, and 5 to 10 points."""

    points: int
    """control points of each dim"""
    degree: int
    """of the polynomial pieces, below `points`"""
    gripper_degree: int
    """the same for grippers"""
    ridge: float
    """weight of the control points' squares in a fit"""
    bins: int

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins={self.bins}: must be at least 2, as 256")
        for degree in (self.degree, self.gripper_degree):
            # Its arguments are checked there.
            spline(1, self.points, degree, self.ridge)


class Beast:
    """An `ActionTokenizer`.

    Args:
        settings: of splines and bins.
        ranges: by robot, f64[2, points, A0]: the least and the largest of each control point, in scaled units.
        units: the robots.

    Raises:
        ValueError: a robot has no ranges, or of another shape.
    """

    kind = "beast"

    def __init__(self, settings: BeastSettings, ranges: Mapping[str, Doubles], units: Units) -> None:
        self.settings, self.ranges, self.units = settings, dict(ranges), units
        self.embodiments, self.statistics = units.embodiments, units.statistics
        self.num_codes = settings.bins
        for robot in self.embodiments:
            shape = (2, settings.points, units.dims(robot))
            if robot not in ranges or ranges[robot].shape != shape:
                found = list(ranges[robot].shape) if robot in ranges else None
                raise ValueError(f"ranges of robot {robot!r} must be f64{list(shape)}, not {found}")

    def encode(self, robot: str, values: Floats, start: Floats | None = None) -> list[Codes]:
        """Strings of codes of chunks: see `ActionTokenizer`."""
        points = fit_points(self.settings, self.units, robot, values)
        low, high = self.ranges[robot]
        spread = np.where(high > low, high - low, 1.0)
        return list(to_bins((points - low) / spread, self.num_codes).reshape(len(values), low.size))

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int, start: Floats | None = None) -> Floats:
        """Chunks of strings of codes: see `ActionTokenizer`."""
        rows = self.grammar(robot, horizon).stack(codes)
        low, high = self.ranges[robot]
        points = low + (high - low) * from_bins(rows, self.num_codes).reshape(len(rows), *low.shape)
        normalized = np.empty((len(rows), horizon, points.shape[2]))
        for degree, dims in _degrees(self.settings, self.units, robot):
            curve = spline(horizon, self.settings.points, degree, self.settings.ridge)
            normalized[..., dims] = curve.evaluate(points[..., dims])
        return self.units.unnormalize(robot, normalized)

    def grammar(self, robot: str, horizon: int) -> RangeGrammar:
        """What `decode` takes, the same for every horizon: see `ActionTokenizer`."""
        if horizon < 1:
            raise CodesError(f"horizon={horizon}: must be at least 1")
        return RangeGrammar.equal(self.settings.points * self.units.dims(robot), self.num_codes)

    def save(self, folder: Path) -> None:
        """Write what `load_action_tokenizer` reads."""
        files = {WEIGHTS_FILE: save(self.ranges)}
        write_stored(folder, Stored(kind=self.kind, config=asdict(self.settings), units=self.units, files=files))

    @staticmethod
    def from_stored(stored: Stored) -> Beast:
        """What `save` wrote.

        Raises:
            ValueError: the ranges are missing or another tokenizer's.
        """
        if WEIGHTS_FILE not in stored.files:
            raise ValueError(f"{WEIGHTS_FILE} is missing: it holds the range of each control point")
        return Beast(BeastSettings(**stored.config), load(stored.files[WEIGHTS_FILE]), stored.units)


def fit_beast(chunks: Mapping[str, Floats], units: Units, settings: BeastSettings) -> Beast:
    """BEAST with the ranges that the control points of chunks f32[N, H, A0] have, by robot.

    Raises:
        ValueError: a robot has no chunk.
        ChunkError: a chunk is not its robot's.
    """
    ranges = {}
    for robot in units.embodiments:
        if robot not in chunks or not len(chunks[robot]):
            raise ValueError(f"robot {robot!r} has no chunk to find the range of its control points in")
        points = fit_points(settings, units, robot, chunks[robot])
        ranges[robot] = np.stack([points.min(axis=0), points.max(axis=0)])
    return Beast(settings, ranges, units)


def fit_points(settings: BeastSettings, units: Units, robot: str, values: Floats) -> Doubles:
    """Control points f64[N, points, A0] of chunks f32[N, H, A0] in own units."""
    normalized = units.normalize(robot, values)
    points = np.empty((len(values), settings.points, values.shape[2]))
    for degree, dims in _degrees(settings, units, robot):
        curve = spline(values.shape[1], settings.points, degree, settings.ridge)
        points[..., dims] = curve.fit(normalized[..., dims])
    return points


def _degrees(settings: BeastSettings, units: Units, robot: str) -> list[tuple[int, list[int]]]:
    """Each degree, and the dims that have a spline of it."""
    parts = parts_of(units.robot(robot))
    grippers = sorted(dim for part in parts if part.kind is Kind.gripper for dim in part.dims)
    others = sorted(dim for part in parts if part.kind is not Kind.gripper for dim in part.dims)
    return [(settings.degree, others), (settings.gripper_degree, grippers)]
