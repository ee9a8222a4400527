"""How questions are worded. Several ways each, drawn by the sample's key; answers have one form."""

from __future__ import annotations

from enum import Enum

import numpy as np


class Kind(Enum):
    """What a sample asks about."""

    box = "box"
    """the box around what is visible of a thing"""
    point = "point"
    """a pixel that shows it"""
    relation = "relation"
    """which of two things is more to the left, in front, higher, or nearer to the gripper"""
    count = "count"
    """how many of some things are visible"""
    plan = "plan"
    """the sub-tasks of the whole task"""
    next = "next"
    """the sub-task that is due"""
    progress = "progress"
    """how much of the episode is over"""
    success = "success"
    """whether the task is done"""
    trajectory = "trajectory"
    """where in the picture the gripper will be"""
    action = "action"
    """the sub-task that is due, the actions that do it, and whether they did"""


TEMPLATES: dict[Kind, tuple[str, ...]] = {
    Kind.box: (
        "Where is {the}? Answer with its box as JSON.",
        "Draw a box around {the}; give bbox_2d in pixels.",
        "Locate {the} in the picture. Output bbox_2d as JSON.",
        "Give the bounding box of {the}.",
    ),
    Kind.point: (
        "Point at {the}. Answer as JSON.",
        "Where in the picture is {the}? Give point_2d in pixels.",
        "Mark {the} with a point; output point_2d as JSON.",
        "Give a point on {the}.",
    ),
    Kind.plan: (
        "What are the steps of this task: {instruction}?",
        "The robot is asked to {instruction}. Write its plan.",
        "Plan the task step by step: {instruction}.",
        "Which sub-tasks does it take to {instruction}?",
    ),
    Kind.next: (
        "The task is to {instruction}. What should the robot do next?",
        "To {instruction}, what comes next?",
        "What is the next sub-task for this: {instruction}?",
        "The robot has to {instruction}. Name its next step.",
    ),
    Kind.progress: (
        "The task is to {instruction}. How far is the robot, in percent?",
        "How many percent of this is done: {instruction}?",
        "Estimate the progress in percent: {instruction}.",
        "The robot is to {instruction}. How much is done? Answer in percent.",
    ),
    Kind.success: (
        "The robot was asked to {instruction}. Has it succeeded? Answer yes or no.",
        "Is this task done: {instruction}?",
        "Did the robot {instruction}? Answer yes or no.",
        "Task: {instruction}. Is it finished?",
    ),
    Kind.trajectory: (
        "The task is to {instruction}. Where will the gripper go? Give {count} points, {spacing} s apart, as JSON.",
        "Predict the gripper's path in the picture for this: {instruction}. {count} points, one every {spacing} s.",
        "To {instruction}, through which {count} points will the gripper move? One every {spacing} s; answer as JSON.",
        "Trace the coming path of the gripper with {count} points, {spacing} s apart. The task: {instruction}.",
    ),
}
LISTED = (
    "How many of these are in the picture: {things}? Answer with a number.",
    "Of {things}, how many can you see? Answer with a number.",
    "Count those that are visible: {things}.",
    "How many of the following does the picture show: {things}?",
)
ALIKE = (
    "How many {thing}s are in the picture? Answer with a number.",
    "Count the {thing}s.",
    "What is the number of {thing}s in view?",
    "How many {thing}s can you see?",
)


class Relation(Enum):
    """What two things are compared by."""

    side = "side"
    depth = "depth"
    height = "height"
    nearness = "nearness"


RELATIONS: dict[Relation, tuple[str, ...]] = {
    Relation.side: (
        "Is the {first} to the left or to the right of the {second}?",
        "Left or right: on which side of the {second} is the {first}?",
        "Seen from the camera, on which side of the {second} is the {first}, left or right?",
    ),
    Relation.depth: (
        "Seen from the camera, is the {first} in front of or behind the {second}?",
        "In front or behind: where is the {first}, compared with the {second}?",
        "Is the {first} behind the {second} or in front of it?",
    ),
    Relation.height: (
        "Is the {first} above or below the {second}?",
        "Above or below: how high is the {first}, compared with the {second}?",
        "Which is true of the {first}: above the {second}, or below it?",
    ),
    Relation.nearness: (
        "Which is nearer to the gripper, the {first} or the {second}?",
        "The {first} or the {second}: which one is closer to the gripper?",
        "What is the gripper nearer to, the {first} or the {second}?",
    ),
}
ANSWERS: dict[Relation, tuple[str, str]] = {
    Relation.side: ("left", "right"),
    Relation.depth: ("in front", "behind"),
    Relation.height: ("above", "below"),
}
DONE = (
    "Has the robot managed to {subtask}? Answer yes or no.",
    "The sub-task was: {subtask}. Is it done?",
    "Is it done? The sub-task: {subtask}.",
    "Did that complete the sub-task to {subtask}?",
)
AND_NOW = (
    "What comes next?",
    "And what should the robot do now?",
    "Name the next step.",
    "What is the sub-task now?",
)


def phrase(draws: np.random.Generator, templates: tuple[str, ...], **fields: object) -> str:
    """One of the wordings, filled in."""
    return templates[int(draws.integers(len(templates)))].format(**fields)


def yes(answer: bool) -> str:
    """`yes` or `no`."""
    return "yes" if answer else "no"
