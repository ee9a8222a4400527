"""Which columns of a LeRobot dataset make a robot's state, action and cameras."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.lerobot.dataset import LeRobotDataset
from flagscale_vla.data.lerobot.deltas import check_dims, difference
from flagscale_vla.data.lerobot.info import Feature
from flagscale_vla.robots.embodiments import Embodiment

STATE = "observation.state"
ACTION = "action"
PREFIXES = ("observation.images.", "observation.", "states.", "state.", "actions.", "action.")
"""Cut from keys for short names: `observation.states.joint.position` is `joint_position`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is wanted of a dataset; empty keys stand for all that there are."""

    camera_keys: tuple[str, ...] = ()
    state_keys: tuple[str, ...] = ()
    action_keys: tuple[str, ...] = ()
    delta_actions: bool = False
    effector_indices: tuple[int, ...] = ()
    robot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Columns of a dataset, concatenated in order, and the robot that they describe."""

    dataset: LeRobotDataset
    cameras: tuple[Feature, ...]
    states: tuple[Feature, ...]
    actions: tuple[Feature, ...]
    embodiment: Embodiment
    """its cameras are in the order of `cameras`"""
    choice: Choice

    def arrays(self, episode: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """States f32[T, S] and actions f32[T, A0] of an episode; actions are deltas where so chosen.

        Raises:
            ValueError: a column is damaged; see `LeRobotDataset.frame_table`.
        """
        table = self.dataset.frame_table(episode, [feature.key for feature in (*self.states, *self.actions)])
        states, actions = (
            np.concatenate([table[feature.key] for feature in features], axis=1).astype(np.float32)
            for features in (self.states, self.actions)
        )
        return states, difference(actions, self.choice.effector_indices) if self.choice.delta_actions else actions


def select(dataset: LeRobotDataset, name: str, choice: Choice) -> Selection:
    """Find the columns that are wanted.

    Args:
        name: of the dataset, which a robot without a name of its own is called after.

    Raises:
        ValueError: a key is missing or of another kind, there is no state or no action, or the rate is no whole number.
    """
    cameras = chosen(dataset, choice.camera_keys, "camera", "")
    states = chosen(dataset, choice.state_keys, "state", STATE)
    actions = chosen(dataset, choice.action_keys, "action", ACTION)
    fps = dataset.info.fps
    if not (math.isfinite(fps) and fps >= 1 and fps == int(fps)):
        raise ValueError(
            f"fps={fps} of {dataset.info.root} is no whole number above zero; write it anew at such a rate"
        )
    embodiment = Embodiment(
        name=choice.robot or dataset.info.robot or name,
        state=dim_names(states),
        action=dim_names(actions),
        cameras=camera_names(cameras),
        fps=int(fps),
    )
    check_dims(choice.effector_indices, len(embodiment.action))
    return Selection(
        dataset=dataset, cameras=cameras, states=states, actions=actions, embodiment=embodiment, choice=choice
    )


def chosen(dataset: LeRobotDataset, keys: Sequence[str], kind: str, prefix: str) -> tuple[Feature, ...]:
    """The features of some keys, or, without keys, all of a kind.

    Raises:
        ValueError: a key is missing or of another kind, or numbers of a kind are missing altogether.
    """
    wanted = [dataset.feature(key) for key in keys] or [
        feature
        for key, feature in dataset.features.items()
        if fits(feature, kind) and key.startswith(prefix) and not feature.is_depth
    ]
    wrong = [feature for feature in wanted if not fits(feature, kind)]
    if wrong or (not wanted and kind != "camera"):
        named = f"{wrong[0].key} is {wrong[0].dtype}" if wrong else f"no column of numbers begins with {prefix!r}"
        keys_of_kind = [key for key, feature in dataset.features.items() if fits(feature, kind)]
        raise ValueError(f"{kind}_keys={list(keys)}: {named} in {dataset.info.root}; these would pass: {keys_of_kind}")
    return tuple(wanted)


def fits(feature: Feature, kind: str) -> bool:
    """Whether a feature may be a camera, or else a part of a state or action."""
    return feature.is_picture if kind == "camera" else feature.is_numeric


def short_name(key: str) -> str:
    """A key without what all keys begin with, in letters, digits, `_` and `-`."""
    for prefix in PREFIXES:
        if key.startswith(prefix) and len(key) > len(prefix):
            key = key[len(prefix) :]
    return re.sub(r"[^A-Za-z0-9_\-]+", "_", key)


def camera_names(cameras: Sequence[Feature]) -> tuple[str, ...]:
    """A name for each camera; where short ones collide, the whole keys."""
    names = [short_name(camera.key) for camera in cameras]
    if len(set(names)) == len(names):
        return tuple(names)
    return tuple(re.sub(r"[^A-Za-z0-9_\-]+", "_", camera.key) for camera in cameras)


def dim_names(features: Sequence[Feature]) -> tuple[str, ...]:
    """A name for each dim; the column's stands before it where two columns use the same or have none."""
    named = [name for feature in features for name in feature.names or numbered_names(feature)]
    if len(set(named)) == len(named):
        return tuple(named)
    return tuple(
        f"{short_name(feature.key)}_{name}" if feature.names else name
        for feature in features
        for name in feature.names or numbered_names(feature)
    )


def numbered_names(feature: Feature) -> tuple[str, ...]:
    """Names for a column that has none: `state_0`, `state_1`, ..."""
    return tuple(f"{short_name(feature.key)}_{dim}" for dim in range(feature.width))
