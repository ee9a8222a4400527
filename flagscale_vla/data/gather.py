"""The states and actions of samples, gathered shard by shard into the statistics of each robot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.records import Action, RawSample, State
from flagscale_vla.robots.statistics import Gatherer, RobotStatistics, Statistics, no_statistics

Rows = dict[tuple[str, str], tuple[list[str], list[NDArray[np.float32]]]]
"""By (robot, state or action): keys, and a vector for each."""
Gatherers = dict[tuple[str, str], Gatherer]
"""By (robot, state or action)."""


def collect(raw: RawSample, rows: Rows) -> None:
    """Note each state, and each chunk's first action: over a shard of frames, every action of an episode once."""
    for number, segment in enumerate(raw.segments):
        match segment:
            case State():
                kind, values = "state", segment.values
            case Action():
                kind, values = "action", segment.values[0]
            case _:
                continue
        keys, kept = rows.setdefault((segment.robot, kind), ([], []))
        keys.append(f"{raw.key}/{number}")
        kept.append(values)


def gather(rows: Rows) -> Gatherers:
    """What was collected of one shard."""
    gatherers: Gatherers = {}
    for place, (keys, values) in rows.items():
        gatherers[place] = Gatherer(values[0].shape[-1])
        gatherers[place].add(keys, np.stack(values))
    return gatherers


def join(parts: Iterable[Mapping[tuple[str, str], Gatherer]]) -> dict[str, RobotStatistics]:
    """The statistics of all robots, from those of shards in order."""
    whole: Gatherers = {}
    for part in parts:
        for place, gatherer in part.items():
            whole.setdefault(place, Gatherer(gatherer.width)).merge(gatherer)

    def finish(robot: str, kind: str) -> Statistics:
        # A robot may have actions and no states: what was never seen is never scaled.
        return whole[robot, kind].finish() if (robot, kind) in whole else no_statistics()

    robots = sorted({robot for robot, _ in whole})
    return {name: RobotStatistics(state=finish(name, "state"), action=finish(name, "action")) for name in robots}
