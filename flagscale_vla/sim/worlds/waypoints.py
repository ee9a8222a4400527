"""A scripted expert for an arm: a list of places to be, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.sim.worlds.arm import Arm

Vector = NDArray[np.float64]

OPEN, CLOSED = -1.0, 1.0
ANGLE_TOLERANCE = 0.1
"""Radians the hand may be turned away from where it should be."""
GAIN = 3.0
"""How much of the way is asked for at once; the controller lags behind what it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waypoint:
    """A place for the hand, held until it is reached.

    `goal` is asked at every step while `live`, so that it may follow an object, else once, on setting out.
    """

    phase: str
    goal: Callable[[], Vector]
    """f64[3] in metres"""
    grip: float
    tolerance: float
    """metres"""
    patience: int
    """steps after which the next waypoint is tried all the same"""
    hold: int = 0
    """steps to stay at least"""
    live: bool = False


class WaypointExpert:
    """Drives an arm along waypoints; at the last one it stays.

    Args:
        arm: read and driven.
        rotation: the hand's rotation f64[3, 3] on the whole way.
        waypoints: at least one.
    """

    def __init__(self, arm: Arm, rotation: Vector, waypoints: Sequence[Waypoint]) -> None:
        self._arm, self._rotation, self._waypoints = arm, rotation, list(waypoints)
        self._at = 0
        self._steps = 0
        self._goal = self._waypoints[0].goal()

    @property
    def phase(self) -> str:
        """Of the waypoint it heads for."""
        return self._waypoints[self._at].phase

    @property
    def phases(self) -> tuple[str, ...]:
        """Of all waypoints, in their order, each once."""
        return tuple(dict.fromkeys(waypoint.phase for waypoint in self._waypoints))

    def action(self) -> NDArray[np.float32]:
        """The next action f32[7]; counts as one step."""
        self._advance()
        waypoint = self._waypoints[self._at]
        if waypoint.live:
            self._goal = waypoint.goal()
        self._steps += 1
        return self._arm.toward(self._goal, self._rotation, waypoint.grip, GAIN)

    def _advance(self) -> None:
        waypoint = self._waypoints[self._at]
        last = self._at == len(self._waypoints) - 1
        if last or self._steps < waypoint.hold:
            return
        if self._arrived(waypoint) or self._steps >= waypoint.patience:
            self._at, self._steps = self._at + 1, 0
            self._goal = self._waypoints[self._at].goal()

    def _arrived(self, waypoint: Waypoint) -> bool:
        near = np.linalg.norm(self._goal - self._arm.position) < waypoint.tolerance
        return self._steps > 0 and bool(near) and self._arm.angle_to(self._rotation) < ANGLE_TOLERANCE


def pick_up(arm: Arm, grasp: Callable[[], Vector], *, hover: float, lift: float) -> list[Waypoint]:
    """Over the grasp point, down, close, up.

    Args:
        grasp: where the hand closes, f64[3].
        hover: metres above it where the hand comes from.
        lift: metres the hand then rises by.
    """
    return [
        Waypoint(phase="reach", goal=lambda: grasp() + up(hover), grip=OPEN, tolerance=0.015, patience=80, live=True),
        Waypoint(phase="lower", goal=grasp, grip=OPEN, tolerance=0.01, patience=60, live=True),
        Waypoint(phase="grasp", goal=lambda: arm.position, grip=CLOSED, tolerance=1.0, patience=10, hold=10),
        Waypoint(phase="lift", goal=lambda: arm.position + up(lift), grip=CLOSED, tolerance=0.03, patience=50),
    ]


def put_down(arm: Arm, place: Callable[[], Vector], *, height: float) -> list[Waypoint]:
    """Over the place, down, open, away.

    Args:
        place: where the hand opens, f64[3]; asked on setting out, with the object in the hand.
        height: metres above it on the way there.
    """
    return [
        Waypoint(phase="carry", goal=lambda: place() + up(height), grip=CLOSED, tolerance=0.02, patience=120),
        Waypoint(phase="place", goal=place, grip=CLOSED, tolerance=0.012, patience=60),
        Waypoint(phase="release", goal=lambda: arm.position, grip=OPEN, tolerance=1.0, patience=12, hold=12),
        Waypoint(phase="retreat", goal=lambda: arm.position + up(0.15), grip=OPEN, tolerance=0.0, patience=1),
    ]


def up(height: float) -> Vector:
    """f64[3] straight up."""
    return np.array([0.0, 0.0, height])
