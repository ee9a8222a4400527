"""What questions may name, and where it is at a moment. Imports no simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRIPPER = "gripper"
"""What every world calls the robot's hand with its fingers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """Something that a question may name. Things that look alike share a name; one may be part of another."""

    name: str
    geoms: frozenset[int]
    sites: frozenset[int] = frozenset()

    def overlaps(self, other: Thing) -> bool:
        """Whether one is a part of the other."""
        return bool(self.geoms & other.geoms or self.sites & other.sites)


@dataclass(frozen=True, slots=True, kw_only=True)
class Poses:
    """Where everything was at one moment, as `Scene.take` found it: the arrays of `scene.POSES`, in that order."""

    arrays: tuple[NDArray[np.float64], ...]
