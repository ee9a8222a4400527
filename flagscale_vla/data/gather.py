"""The states and actions of samples, gathered shard by shard into the statistics of each robot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.records import Action, RawSample, State
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import Gatherer, RobotStatistics, Statistics, no_statistics

DELTA, STEP = "delta", "step"
"""Of a chunk: its actions less the state they begin at, in the dims that both name alike; its second action less its
first."""

Rows = dict[tuple[str, str], list[NDArray[np.float32]]]
"""Vectors [A0], or rows of them [n, A0], by (robot, kind); kinds are `state`, `action`, and the two above."""
Gatherers = dict[tuple[str, str], Gatherer]
"""By (robot, kind)."""


def collect(raw: RawSample, rows: Rows) -> None:
    """Note each state, and each chunk's first action: over a shard of frames, every action of an episode once."""
    for segment in raw.segments:
        match segment:
            case State():
                rows.setdefault((segment.robot, "state"), []).append(segment.values)
            case Action():
                rows.setdefault((segment.robot, "action"), []).append(segment.values[0])


def collect_differences(raw: RawSample, embodiments: Mapping[str, Embodiment], rows: Rows) -> None:
    """Note the differences inside each chunk; only steps inside the episode count.

    `delta` has every step of a chunk, as a model that answers with such differences meets them; `step` has the first
    alone: over a shard of frames, every pair of neighbours once.

    Args:
        embodiments: that know the sample's robot.
    """
    state: State | None = None
    for segment in raw.segments:
        match segment:
            case State():
                state = segment
            case Action(values=values, valid=valid, robot=robot):
                ours, theirs = shared_dims(embodiments[robot])
                if state is not None and len(ours) and valid.any():
                    rows.setdefault((robot, DELTA), []).append(values[valid][:, ours] - state.values[theirs])
                if valid[:2].sum() == 2:
                    rows.setdefault((robot, STEP), []).append(values[1] - values[0])


def shared_dims(robot: Embodiment) -> tuple[list[int], list[int]]:
    """Places in the action, and in the state, of the dims that both name alike."""
    names = [name for name in robot.action if name in robot.state]
    return [robot.action.index(name) for name in names], [robot.state.index(name) for name in names]


def names_of(robot: Embodiment, kind: str) -> tuple[str, ...]:
    """The names of the dims of a kind."""
    if kind == DELTA:
        return tuple(robot.action[dim] for dim in shared_dims(robot)[0])
    return robot.state if kind == "state" else robot.action


def gather(rows: Rows) -> Gatherers:
    """What was collected of one shard."""
    gatherers: Gatherers = {}
    for place, vectors in rows.items():
        gatherers[place] = Gatherer(vectors[0].shape[-1])
        gatherers[place].add(np.vstack(vectors))
    return gatherers


def merge(parts: Iterable[Mapping[tuple[str, str], Gatherer]]) -> Gatherers:
    """What was gathered in parts, in any order."""
    whole: Gatherers = {}
    for part in parts:
        for place, gatherer in part.items():
            whole.setdefault(place, Gatherer(gatherer.width)).merge(gatherer)
    return whole


def join(parts: Iterable[Mapping[tuple[str, str], Gatherer]]) -> dict[str, RobotStatistics]:
    """The statistics of all robots, from those of shards in any order."""
    whole = merge(parts)

    def finish(robot: str, kind: str) -> Statistics:
        # A robot may have actions and no states: what was never seen is never scaled.
        return whole[robot, kind].finish() if (robot, kind) in whole else no_statistics()

    robots = sorted({robot for robot, _ in whole})
    return {name: RobotStatistics(state=finish(name, "state"), action=finish(name, "action")) for name in robots}


def to_arrays(gatherers: Gatherers) -> tuple[list[tuple[str, str]], dict[str, NDArray[Any]]]:
    """What was gathered as plain arrays: the places, and each one's arrays as `NUMBER.FIELD`."""
    arrays = {
        f"{number}.{field}": array
        for number, gatherer in enumerate(gatherers.values())
        for field, array in gatherer.to_arrays().items()
    }
    return list(gatherers), arrays


def from_arrays(places: Iterable[Sequence[str]], arrays: Mapping[str, NDArray[Any]]) -> Gatherers:
    """The inverse of `to_arrays`; arrays of other names are passed over."""
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        number, dot, field = name.partition(".")
        if dot:
            parts.setdefault(number, {})[field] = array
    return {(robot, kind): Gatherer.from_arrays(parts[str(at)]) for at, (robot, kind) in enumerate(places)}
