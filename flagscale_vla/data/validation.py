"""What a sample's numbers must hold before they are trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.records import Action, RawSample, State
from flagscale_vla.robots.embodiments import Embodiment


def check_segments(raw: RawSample, embodiments: Mapping[str, Embodiment], horizon: int) -> None:
    """Refuse numbers that cannot be trained on.

    Raises:
        BadSampleError: an empty sample, NaN or infinity, an unknown robot, a wrong width, or too short a chunk.
    """
    if not raw.segments:
        raise BadSampleError(raw.key, "has no segments")
    for segment in raw.segments:
        if isinstance(segment, State):
            _check_values(raw.key, "state", segment, embodiments)
        elif isinstance(segment, Action):
            _check_values(raw.key, "action", segment, embodiments)
            if len(segment.values) < horizon:
                reason = f"its action has {len(segment.values)} steps; action.horizon={horizon} needs at least as many"
                raise BadSampleError(raw.key, reason)


def _check_values(key: str, kind: str, segment: State | Action, embodiments: Mapping[str, Embodiment]) -> None:
    robot = embodiments.get(segment.robot)
    if robot is None:
        reason = f"robot {segment.robot!r} is not in embodiments.json, which has {sorted(embodiments)}"
        raise BadSampleError(key, reason)
    dims = len(robot.state if kind == "state" else robot.action)
    if segment.values.shape[-1] != dims:
        reason = f"its {kind} has {segment.values.shape[-1]} dims; robot {robot.name!r} has {dims}"
        raise BadSampleError(key, reason)
    if not np.isfinite(segment.values).all():
        raise BadSampleError(key, f"its {kind} holds NaN or infinity")
