"""What a trained checkpoint knows of its robots, as LeRobot's features and statistics spell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flagscale_vla.action.scaling import MODES, Lists, public_statistics
from flagscale_vla.config.checks import check
from flagscale_vla.config.data import Normalization
from flagscale_vla.hf.checkpoint import Checkpoint

STATE, ACTION = "observation.state", "action"


@dataclass(frozen=True, slots=True, kw_only=True)
class Robot:
    """One robot that a checkpoint was trained on."""

    name: str
    cameras: tuple[str, ...]
    """keys of its pictures, in prompt order"""
    state: tuple[str, ...]
    """name of each dim"""
    action: tuple[str, ...]
    statistics: dict[str, Lists]
    """by `STATE` and `ACTION`"""


def robots_of(checkpoint: Checkpoint) -> dict[str, Robot]:
    """The robots with statistics, by name.

    Raises:
        ValueError: the checkpoint was never trained on a robot, or an entry lacks a part.
    """
    recipe = checkpoint.recipe
    if recipe is None or not recipe["statistics"]:
        raise ValueError(f"{checkpoint.folder}: no robot's statistics are in it: it was imported, or trained on none")
    scaled = public_statistics(recipe["statistics"], Normalization(recipe["action"]["normalization"]))
    try:
        return {name: _robot(recipe["embodiments"][name], parts) for name, parts in scaled.items() if len(parts) == 2}
    except KeyError as error:
        raise ValueError(f"{checkpoint.folder}: recipe.json: {error} is missing from a robot's entry") from error


def _robot(embodiment: dict[str, Any], parts: dict[str, Lists]) -> Robot:
    return Robot(
        name=embodiment["name"],
        cameras=tuple(f"observation.images.{camera}" for camera in embodiment["cameras"]),
        state=tuple(embodiment["state"]),
        action=tuple(embodiment["action"]),
        statistics={STATE: parts["state"], ACTION: parts["action"]},
    )


def choose_robot(checkpoint: Checkpoint, wanted: str) -> Robot:
    """The robot that is asked for, or the only one there is.

    Raises:
        ConfigError: it is unknown, or there are several and none is named.
    """
    robots = robots_of(checkpoint)
    name = wanted or next(iter(robots))
    ok = name in robots and (bool(wanted) or len(robots) == 1)
    check(ok, "robot", wanted or "''", f"must be one of the checkpoint's: {', '.join(sorted(robots))}", min(robots))
    return robots[name]


def mode(checkpoint: Checkpoint) -> str:
    """LeRobot's name of the rule by which states and actions are scaled."""
    assert checkpoint.recipe is not None
    return MODES[Normalization(checkpoint.recipe["action"]["normalization"])]
