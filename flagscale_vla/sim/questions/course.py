"""Questions about how the task goes: plan, next sub-task, progress, success, and the gripper's coming path."""

from __future__ import annotations

import json

import numpy as np

from flagscale_vla.sim.questions.clip import FRONT, Clip, Question, RefusedError, asked
from flagscale_vla.sim.questions.wording import TEMPLATES, Kind, phrase, yes

PERCENT_STEP = 10
"""Progress is told in steps of this many percent."""
SURELY_UNFINISHED = 5
"""A success question is answered no only at frames that lie this many steps before the end, or more."""
PATH_STEPS = (2, 4, 6, 8, 10)
"""Control steps ahead at which the gripper's place is told."""
SHORTEST_PATH = 3
"""points"""
SHORTEST_WAY = 4.0
"""pixels that the gripper moves at least, for its path to be worth asking for"""


def ask_plan(clip: Clip, draws: np.random.Generator) -> Question:
    """All sub-tasks, from how the episode began."""
    answer = "\n".join(f"{number}. {text}" for number, text in enumerate(clip.truth.subtasks.values(), 1))
    return _ask_course(clip, draws, Kind.plan, 0, answer)


def ask_next(clip: Clip, draws: np.random.Generator) -> Question:
    """The sub-task that is due."""
    position = int(draws.integers(clip.length))
    return _ask_course(clip, draws, Kind.next, position, clip.subtask(position))


def ask_progress(clip: Clip, draws: np.random.Generator) -> Question:
    """The share of the episode's steps that is over."""
    position = int(draws.integers(clip.length + 1))
    return _ask_course(clip, draws, Kind.progress, position, f"{percent(position, clip.length)}%")


def percent(position: int, length: int) -> int:
    """Progress as it is told: 0 at the first frame, 100 where the episode ended."""
    return round(100 * position / length / PERCENT_STEP) * PERCENT_STEP


def ask_success(clip: Clip, draws: np.random.Generator) -> Question:
    """Whether the task is done: half of the time it is."""
    unfinished = clip.length - SURELY_UNFINISHED
    if draws.integers(2):
        return _ask_course(clip, draws, Kind.success, clip.length, yes(True))
    if unfinished < 0:
        raise RefusedError(f"the episode has no frame {SURELY_UNFINISHED} steps before its end")
    return _ask_course(clip, draws, Kind.success, int(draws.integers(unfinished + 1)), yes(False))


def _ask_course(clip: Clip, draws: np.random.Generator, kind: Kind, position: int, answer: str) -> Question:
    question = phrase(draws, TEMPLATES[kind], instruction=clip.episode.instruction)
    subtask = answer if kind is Kind.next else ""
    return Question(
        kind=kind, position=position, segments=asked(clip.image(position), question, answer), subtask=subtask
    )


def ask_trajectory(clip: Clip, draws: np.random.Generator) -> Question:
    """Where the point between the fingertips will be in the picture, at `PATH_STEPS`, as far as the episode goes."""
    position = int(draws.integers(clip.length))
    later = [position + step for step in PATH_STEPS if position + step <= clip.length]
    if len(later) < SHORTEST_PATH:
        raise RefusedError(f"the episode ends before the path has {SHORTEST_PATH} points")
    hands = np.stack([clip.scene.hand(clip.poses(at)) for at in [position, *later]])
    lens = clip.lens(position, FRONT)
    places = lens.project(hands)
    if not lens.sees(places).all():
        raise RefusedError("the gripper's path leaves the picture")
    if np.linalg.norm(places - places[0], axis=1).max() < SHORTEST_WAY:
        raise RefusedError(f"the gripper moves by less than {SHORTEST_WAY:g} pixels")
    answer = json.dumps([{"point_2d": [round(x), round(y)]} for x, y in places[1:].tolist()])
    spacing = f"{PATH_STEPS[0] / clip.episode.fps:g}"
    question = phrase(
        draws,
        TEMPLATES[Kind.trajectory],
        instruction=clip.episode.instruction,
        count=len(later),
        spacing=spacing,
    )
    segments = asked(clip.image(position), question, answer)
    return Question(kind=Kind.trajectory, position=position, segments=segments)
