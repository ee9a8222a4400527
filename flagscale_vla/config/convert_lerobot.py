"""Settings of the two jobs that trade data with LeRobot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive, check_share
from flagscale_vla.config.convert import ConvertRun


class Instruction(Enum):
    """Which words a frame's instruction is made of (EO-1's `train_subtask`)."""

    task = "task"
    """the task of the frame, as `task_index` names it"""
    subtask = "subtask"
    """the part of the episode that the frame lies in, from `action_config`"""
    mixture = "mixture"
    """one of the two, drawn for each frame"""
    cumulate = "cumulate"
    """all parts of the episode, one after the other"""


@dataclass(slots=True, kw_only=True)
class ConvertLeRobotRun(ConvertRun):
    """Turning a LeRobot dataset into shards, one sample a frame."""

    source: str
    """folder of a dataset of version 2.0, 2.1 or 3.0"""
    name: str
    """of the dataset, in keys and in `meta`; empty for the folder's own"""
    robot: str
    """empty for the dataset's `robot_type`, or its name where that is not told"""
    camera_keys: list[str]
    state_keys: list[str]
    action_keys: list[str]
    """columns in the order wanted; empty for all pictures but depth, and all columns whose names begin with
    `observation.state` and `action`"""
    episodes: list[int]
    """empty for all"""
    stride: int
    """take every so manieth frame; actions keep their rate"""
    horizon: int
    """future steps stored with each frame; the longest chunk that can be trained"""
    delta_actions: bool
    """store what each action adds to the one before it instead of the action"""
    effector_indices: list[int]
    """dims of the whole action that stay absolute nevertheless, as grippers"""
    instruction: Instruction
    subtask_share: float
    """of frames that get their subtask's words, where instruction=mixture"""

    def __post_init__(self) -> None:
        ConvertRun.__post_init__(self)
        check(bool(self.source), "source", self.source or "''", "must name a LeRobot dataset's folder", "data/pusht")
        for name in ("stride", "horizon"):
            check_positive(name, self.__getattribute__(name))
        check_share("subtask_share", self.subtask_share)
        for name in ("camera_keys", "state_keys", "action_keys", "episodes", "effector_indices"):
            values = [str(value) for value in self.__getattribute__(name)]
            unique = list(dict.fromkeys(values))
            check(unique == values, name, f"[{','.join(values)}]", "names one twice", f"[{','.join(unique)}]")
        ok = self.delta_actions or not self.effector_indices
        rule = "only says which dims delta_actions=true leaves alone"
        check(ok, "effector_indices", self.effector_indices, rule, [])
