"""A robot's own units to the ones that tokenizers work in, and back into the range seen in training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.tokenizer import ChunkError, Floats
from flagscale_vla.config.data import Normalization
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import RobotStatistics, Scaler, make_scaler


class Units:
    """Scales each dim so that its 1st percentile is -1 and its 99th 1; a constant dim is zero.

    Args:
        embodiments: the robots, by name.
        statistics: of each robot that a tokenizer is to know.

    Raises:
        ValueError: statistics of an unknown robot, of another width than its action, or not finite.
    """

    def __init__(self, embodiments: Mapping[str, Embodiment], statistics: Mapping[str, RobotStatistics]) -> None:
        for name, entry in statistics.items():
            _check_statistics(name, embodiments.get(name), entry)
        self.embodiments = {name: embodiments[name] for name in statistics}
        self.statistics = dict(statistics)

    @cached_property
    def _scalers(self) -> dict[str, Scaler]:
        return {name: make_scaler(entry.action, Normalization.quantile) for name, entry in self.statistics.items()}

    def robot(self, name: str) -> Embodiment:
        """A robot that the tokenizer was fitted on.

        Raises:
            ChunkError: it was not.
        """
        if name not in self.embodiments:
            raise ChunkError(f"robot={name!r} was not fitted; known are {sorted(self.embodiments)}")
        return self.embodiments[name]

    def dims(self, robot: str) -> int:
        """Numbers in one action step, A0; `ChunkError` for an unknown robot."""
        return len(self.robot(robot).action)

    def scaler(self, robot: str) -> Scaler:
        """What scales a robot's actions, without any limit; `ChunkError` for an unknown robot."""
        return self._scalers[self.robot(robot).name]

    def limits(self, robot: str) -> tuple[Floats, Floats]:
        """The least and the largest value that training saw, f32[A0] each, in the robot's own units."""
        action = self.statistics[self.robot(robot).name].action
        return np.asarray(action.min, np.float32), np.asarray(action.max, np.float32)

    def normalize(self, robot: str, values: Floats, origin: Floats | None = None) -> Floats:
        """Scaled chunks f32[N, H, A0] of chunks in own units, which are first brought into `limits`.

        `origin`, f32[N or 1, 1, A0] in own units, is what becomes zero in place of the middle of the range.

        Raises:
            ChunkError: an unknown robot, another shape, no step, or a number that is not finite.
        """
        self._check(self.robot(robot), values)
        scaler = self.scaler(robot)
        clipped = np.clip(values, *self.limits(robot)).astype(np.float32, copy=False)
        return (clipped - (scaler.shift if origin is None else origin)) / scaler.scale

    def unnormalize(self, robot: str, normalized: NDArray[Any], origin: Floats | None = None) -> Floats:
        """Chunks f32[N, H, A0] in own units and within `limits`, of scaled ones that are finite; `origin` as before."""
        low, high = self.limits(robot)
        scaler = self.scaler(robot)
        values = normalized * scaler.scale.astype(np.float64) + (scaler.shift if origin is None else origin)
        return np.clip(values, low, high).astype(np.float32)

    @staticmethod
    def _check(robot: Embodiment, values: Floats) -> None:
        if values.ndim != 3 or values.shape[1] == 0:
            raise ChunkError(f"chunks must be f32[N, H, A0] with H at least 1, not of shape {list(values.shape)}")
        if values.shape[2] != len(robot.action):
            dims = f"{len(robot.action)} action dims {list(robot.action)}"
            raise ChunkError(f"robot {robot.name!r} has {dims}, the chunks have {values.shape[2]}")
        if not np.isfinite(values).all():
            chunk, step, dim = np.argwhere(~np.isfinite(values))[0].tolist()
            number = values[chunk, step, dim]
            raise ChunkError(
                f"chunk {chunk} of robot {robot.name!r} has {robot.action[dim]}={number} at step {step}: not finite"
            )


def _check_statistics(name: str, robot: Embodiment | None, entry: RobotStatistics) -> None:
    """Refuse statistics that are not of this robot."""
    if robot is None:
        raise ValueError(f"there are statistics of robot {name!r}, but no embodiment of that name")
    action = entry.action
    if action.width != len(robot.action):
        dims = f"{len(robot.action)} action dims {list(robot.action)}"
        raise ValueError(f"robot {name!r} has {dims}, but its statistics have {action.width}: they are another robot's")
    for key, values in {"min": action.min, "max": action.max, "q01": action.q01, "q99": action.q99}.items():
        if not np.isfinite(values).all():
            raise ValueError(f"statistics of robot {name!r}: action {key}={list(values)} must be finite")
