"""What a model is told: the task, or RoboBrain-X0's account of robot, actions and pictures around it.

The wording is that of RoboBrain-X0's training data (its prompts v2_1, with the sub-task given, and v3, with the
sub-task to be named first), so that its checkpoints see what they know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flagscale_vla.config.convert_agilex import AgilexRun, Phrasing, Prompt, Subtask, Variant
from flagscale_vla.data.convert.agilex.annotations import Stretch

KINDS = {
    Variant.eepose: (
        "end effector poses (EEPose)",
        "arm EEPose",
        "Each EEPose here includes 3 delta position(xyz) + 3 delta orientation(axis-angle) + 1 gripper(opening range)",
    ),
    Variant.qpos: (
        "joint positions (qpos)",
        "arm joints",
        "Each arm here includes 6 delta joint angles + 1 gripper(opening range)",
    ),
}
IMAGE = "<image>"
"""Where a picture goes in RoboBrain's JSON lines."""


def load_phrases(file: Path) -> dict[str, list[str]]:
    """Ways to say each task.

    Raises:
        ValueError: the file is missing, or is no object with a list of texts for each task.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"phrases={file} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(map(is_texts, found.values())):
        raise ValueError(f"phrases={file}: must be an object that has a list of texts for each task")
    return found


def is_texts(value: object) -> bool:
    """Whether a value is a list of texts, with at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)


def choose_phrase(ways: Sequence[str], phrasing: Phrasing, key: str) -> str:
    """One of the ways to say a task; `any` is chosen by a hash of the sample's key."""
    if phrasing is Phrasing.first:
        return ways[0]
    return ways[int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % len(ways)]


def phrases_of(stretch: Stretch, phrases: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The ways to say a stretch's task; its own words where there are no phrases at all.

    Raises:
        ValueError: there are phrases, but none for this task.
    """
    if phrases and stretch.task not in phrases:
        raise ValueError(f"task has no phrases: {stretch.task!r}")
    return phrases.get(stretch.task, [stretch.task])


def instruction(task: str, stretch: Stretch, run: AgilexRun, image: str = "") -> str:
    """The user's text.

    Args:
        task: in the words chosen for it.
        image: what stands for a picture in RoboBrain's account; nothing where pictures come before the text.
    """
    given = run.subtask is Subtask.give and stretch.subtask
    if run.prompt is Prompt.plain:
        return f"{task} Subtask: {stretch.subtask}" if given else task
    rest = f" Currently, focus on completing the subtask: {stretch.subtask.lower()}" if given else ""
    return f"{account(run)}\n\n{pictures(image)}\nYour overall task is: {task.lower()}{rest}"


def account(run: AgilexRun) -> str:
    """Robot, rate and layout of the actions."""
    what, part, each = KINDS[run.variant]
    rate, shape = run.fps // run.action_interval, f"{run.horizon}×14"
    begin = (
        f"You are controlling an {run.robot.capitalize()} dual-arm robot. Your task is to adjust the {what} at "
        f"{rate}Hz to complete a specified task."
    )
    if run.subtask is Subtask.answer:
        output = (
            "Your output must include two components: 1. Immediate sub-task: The specific action you will execute "
            "first to progress toward the overall task; 2. Control tokens: These will be decoded into a "
            f"{shape} action sequence to implement the sub-task. The action sequence"
        )
    else:
        output = f"You need to output control tokens that can be decoded into a {shape} action sequence. The sequence"
    return (
        f"{begin} {output} has {run.horizon} consecutive actions, each with 14 dimensions. The first 7 dimensions "
        f"control the right {part} and the last 7 dimensions control the left {part}. {each}"
    )


def pictures(image: str) -> str:
    """The order of the pictures."""
    return (
        f"Your current visual inputs are: robot front image{image}, right wrist image{image} and left wrist "
        f"image{image}."
    )
