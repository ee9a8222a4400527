"""The root of the settings that turn RoboBrain-X0's AgileX recordings into shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive
from flagscale_vla.config.convert import ConvertRun

ARMS = 2


class Variant(Enum):
    """What an action is."""

    eepose = "eepose"
    """steps of both hands: position, rotation vector in the frame of the base, gripper"""
    qpos = "qpos"
    """steps of the joints of both arms, and their grippers"""


class Prompt(Enum):
    """What the instruction says."""

    plain = "plain"
    """the task alone"""
    robobrain = "robobrain"
    """robot, rate and layout of the actions, and the order of the pictures, as RoboBrain-X0 is asked"""


class Subtask(Enum):
    """What becomes of the text of the sub-task."""

    leave = "leave"
    """it is kept beside the sample alone"""
    give = "give"
    """it stands in the instruction"""
    answer = "answer"
    """the model says it before it acts"""


class Phrasing(Enum):
    """Which of the ways to say a task is taken."""

    first = "first"
    """as RoboBrain-X0 does"""
    any = "any"
    """one for each sample, the same in every run"""


@dataclass(slots=True, kw_only=True)
class AgilexRun(ConvertRun):
    """Turning annotation JSON, HDF5 and mp4 into shards."""

    annotations: list[str]
    """JSON files: by task, a list of stretches of episodes with their sub-tasks"""
    root: str
    """folder that paths in the annotations begin at; empty for that of the annotations"""
    source: str
    """name of the dataset, kept beside each sample"""
    robot: str
    """the embodiment's name"""
    variant: Variant
    fps: int
    """rows and frames a second"""
    horizon: int
    """steps of a chunk"""
    tail: int
    """steps of a chunk that may lie past the stretch's end, where the last row is repeated and nothing is trained on;
    RoboBrain-X0 has 0"""
    frame_interval: int
    """rows from one sample to the next; the last that has a step ahead is taken too"""
    action_interval: int
    """rows from one step of a chunk to the next"""
    static_tolerance: float
    """a row that differs from the last one kept by no more than this in any number stands still and is dropped"""
    gripper_scale: float
    """what grippers are multiplied by, as 0.01 for recordings in hundredths"""
    gripper_offset: list[float]
    """what is then added to the right and the left gripper"""
    phrases: str
    """JSON file that has, by `raw_task`, a list of ways to say it; empty to say it as it is written"""
    phrasing: Phrasing
    prompt: Prompt
    subtask: Subtask
    jsonl: bool
    """also write RoboBrain-X0's own form: JSON lines with arrays and pictures beside them, in `robobrain`"""
    tokenizer: str
    """with `jsonl`: folder of an action tokenizer that writes the chunks in codes"""

    def __post_init__(self) -> None:
        ConvertRun.__post_init__(self)
        rule = "must name at least one JSON file of annotations"
        check(bool(self.annotations), "annotations", self.annotations, rule, "[agilex.json]")
        for name in ("source", "robot"):
            check(bool(self.__getattribute__(name)), name, "''", "must be a name", "agilex")
        for name in ("fps", "horizon", "frame_interval", "action_interval"):
            check_positive(name, self.__getattribute__(name))
        ok = 0 <= self.tail < self.horizon
        check(ok, "tail", self.tail, f"must lie in [0, {self.horizon - 1}], so that a step is left", 0)
        rule = f"must divide fps={self.fps}, so that steps have a whole rate"
        check(self.fps % self.action_interval == 0, "action_interval", self.action_interval, rule, 1)
        ok = 0 <= self.static_tolerance < math.inf
        check(ok, "static_tolerance", self.static_tolerance, "must be finite and not negative", 0.0)
        ok = math.isfinite(self.gripper_scale) and self.gripper_scale != 0
        check(ok, "gripper_scale", self.gripper_scale, "must be finite and not zero", 1.0)
        ok = len(self.gripper_offset) == ARMS and all(map(math.isfinite, self.gripper_offset))
        check(ok, "gripper_offset", self.gripper_offset, "must be two finite numbers, right and left", "[0.0,0.0]")
        ok = self.jsonl or not self.tokenizer
        check(ok, "tokenizer", self.tokenizer, "codes are written with jsonl=true alone", "''")
        rule = "jsonl=true writes codes, which need the folder of an action tokenizer"
        check(bool(self.tokenizer) or not self.jsonl, "tokenizer", "''", rule, "runs/tokenizer_fast/action_tokenizer")
