"""What a model is told: the task, or RoboBrain-X0's account of robot, actions and pictures around it.

The wording is that of RoboBrain-X0's training data (its prompts v2_1, with the sub-task given, and v3, with the
sub-task to be named first), so that its checkpoints see what they know.
"""

from __future__ import annotations

from flagscale_vla.config.convert_agilex import AgilexRun, Prompt, Subtask, Variant
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


def instruction(stretch: Stretch, run: AgilexRun, image: str = "") -> str:
    """The user's text.

    Args:
        image: what stands for a picture in RoboBrain's account; nothing where pictures come before the text.
    """
    given = run.subtask is Subtask.give and stretch.subtask
    if run.prompt is Prompt.plain:
        return f"{stretch.task} Subtask: {stretch.subtask}" if given else stretch.task
    task = f"Your overall task is: {stretch.task}"
    rest = f" Currently, focus on completing the subtask: {stretch.subtask}" if given else ""
    return f"{account(run)}\n\n{pictures(image)}\n{task}{rest}"


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
