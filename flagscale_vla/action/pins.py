"""Chunks that begin where the robot is: parts whose action dims are targets that the robot's state has by name too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from flagscale_vla.action.tokenizer import ChunkError, Floats
from flagscale_vla.action.units import Units
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.layout import Kind, Part, parts_of

TARGETS = (Kind.position, Kind.rotation, Kind.joints)
"""Kinds that may be targets. A gripper jumps, and a base is asked for speeds."""


@cache
def pinned_parts(robot: Embodiment) -> tuple[Part, ...]:
    """The parts of a robot that can begin at its state: all of whose dims the state has by name.

    Steps have names of their own (`dx`), which no state has, so that they never begin there.
    """
    return tuple(
        part
        for part in parts_of(robot)
        if part.kind in TARGETS and all(robot.action[dim] in robot.state for dim in part.dims)
    )


def check_pins(robots: Mapping[str, Embodiment]) -> None:
    """Refuse robots none of which has a part that could begin at the state.

    Raises:
        ConfigError: naming the robots with their dims.
    """
    if not any(pinned_parts(robot) for robot in robots.values()):
        dims = "; ".join(f"{name!r} has {list(robot.action)} and {list(robot.state)}" for name, robot in robots.items())
        raise ConfigError(
            "codec.pin_start=True: no robot's state has the names of its action's positions, rotations or joints, so "
            f"that no chunk can begin there. Action and state of robot {dims}. This would pass: codec.pin_start=False"
        )


def pins_in_words(robot: Embodiment) -> str:
    """What `pin_start` does to a robot, for a reader."""
    parts = " ".join(f"{part.arm} {part.kind.value}".strip() for part in pinned_parts(robot))
    return f"begins at the state: {parts}" if parts else "nothing begins at the state, whose names are not the action's"


class Origins:
    """Where each action dim of a chunk is counted from: the middle of its range, or, pinned, where the robot is.

    Args:
        units: the robots.
        pin_start: whether parts that can begin at the state do.
    """

    def __init__(self, units: Units, pin_start: bool) -> None:
        self.units, self.pin_start = units, pin_start

    def pins(self, robot: str, part: Part) -> bool:
        """Whether this part of a robot begins at its state; `ChunkError` for an unknown robot."""
        return self.pin_start and part in pinned_parts(self.units.robot(robot))

    def of(self, robot: str, start: Floats | None, count: int) -> Floats:
        """In own units, f32[count, 1, A0], or f32[1, 1, A0] of a robot without pinned parts.

        Args:
            robot: its name.
            start: the robot's state f32[count, S0] where each chunk begins; read only where a part is pinned. What lies
                past the actions' range is brought into it.
            count: chunks.

        Raises:
            ChunkError: an unknown robot; or, where a part is pinned, no start, one of another shape or not finite.
        """
        embodiment = self.units.robot(robot)
        origin = self.units.scaler(robot).shift[None, None]
        parts = pinned_parts(embodiment) if self.pin_start else ()
        if not parts:
            return origin
        dims = [dim for part in parts for dim in part.dims]
        places = [embodiment.state.index(embodiment.action[dim]) for dim in dims]
        origin = np.repeat(origin, count, axis=0)
        origin[:, 0, dims] = _checked(embodiment, start, count)[:, places]
        return np.clip(origin, *self.units.limits(robot))


def _checked(robot: Embodiment, start: Floats | None, count: int) -> Floats:
    """The start, where it is one."""
    if start is None:
        raise ChunkError(f"robot {robot.name!r}: its chunks begin at its state (codec.pin_start), and none was given")
    shape = (count, len(robot.state))
    if start.shape != shape:
        rule = f"must be f32{list(shape)}, of {list(robot.state)}"
        raise ChunkError(f"robot {robot.name!r}: a start of shape {list(start.shape)} {rule}")
    if not np.isfinite(start).all():
        row, dim = np.argwhere(~np.isfinite(start))[0].tolist()
        raise ChunkError(
            f"robot {robot.name!r}: chunk {row} begins at {robot.state[dim]}={start[row, dim]}: not finite. A chunk "
            "needs a state of its robot before it"
        )
    return start
