"""Text before and after actions in one sequence, as EO-1's interleaved samples have it.

    picture      "To open the door, what comes next?"            -> "move to the door handle"
    all cameras, state, "move to the door handle"                -> actions
    picture      "Has the robot managed to move ...?"            -> "no"
                 "What comes next?"                              -> ...

A sample has one or two such rounds. The second begins where the first one's actions end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from flagscale_vla.records import Action, Image, Segment, State, Text
from flagscale_vla.sim.episodes import chunk_at
from flagscale_vla.sim.questions.clip import Clip, Question, asked
from flagscale_vla.sim.questions.wording import AND_NOW, DONE, TEMPLATES, Kind, phrase, yes

MOST_ROUNDS = 2


def ask_action(clip: Clip, draws: np.random.Generator, *, steps: int, horizon: int) -> Question:
    """What is due, the actions that do it, and whether it is done in the frame after them.

    Args:
        steps: after which the robot looks again; the chunk's later ones are not valid.
        horizon: steps of the stored chunk.
    """
    position = draw_start(clip, draws, steps)
    segments: list[Segment] = []
    at = position
    for number in range(1 + int(draws.integers(MOST_ROUNDS))):
        if at == clip.length:
            break
        segments += ask_next(clip, draws, at, first=number == 0)
        segments += act(clip, at, steps, horizon)
        after = min(at + steps, clip.length)
        segments += ask_done(clip, draws, at, after)
        at = after
    return Question(
        kind=Kind.action,
        position=position,
        segments=list(with_own_names(segments)),
        subtask=clip.subtask(position),
    )


def draw_start(clip: Clip, draws: np.random.Generator, steps: int) -> int:
    """A frame after which the sub-task gets done, or does not, with equal chance where there are both."""
    done = [at for at in range(clip.length) if clip.has_passed(at, min(at + steps, clip.length))]
    undone = sorted(set(range(clip.length)) - set(done))
    wanted = done if draws.integers(2) else undone
    starts = wanted or done or undone
    return starts[int(draws.integers(len(starts)))]


def ask_next(clip: Clip, draws: np.random.Generator, at: int, *, first: bool) -> list[Segment]:
    """Which sub-task is due. Later ones are asked about the picture that was shown last."""
    if first:
        question = phrase(draws, TEMPLATES[Kind.next], instruction=clip.episode.instruction)
        return asked(clip.image(at), question, clip.subtask(at))
    return [
        Text(text=phrase(draws, AND_NOW), supervised=False),
        Text(text=clip.subtask(at), supervised=True),
    ]


def act(clip: Clip, at: int, steps: int, horizon: int) -> list[Segment]:
    """The robot's turn, as in its episodes, with the sub-task for its instruction."""
    chunk: Action = chunk_at(clip.episode.actions(), at, horizon, clip.episode.robot)
    return [
        *clip.images(at),
        State(values=clip.episode.frames[at].state, robot=clip.episode.robot),
        Text(text=clip.subtask(at), supervised=False),
        replace(chunk, valid=chunk.valid & (np.arange(horizon) < steps)),
    ]


def ask_done(clip: Clip, draws: np.random.Generator, at: int, after: int) -> list[Segment]:
    """Whether the sub-task is done in the frame after the actions."""
    question = phrase(draws, DONE, subtask=clip.subtask(at))
    return asked(clip.image(after), question, yes(clip.has_passed(at, after)))


def with_own_names(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Pictures named `front`, `front-1`, `front-2`, ...: a shard wants a name of its own for each."""
    counts: dict[str, int] = {}
    for segment in segments:
        if isinstance(segment, Image):
            number = counts.get(segment.name, 0)
            counts[segment.name] = number + 1
            yield replace(segment, name=f"{segment.name}-{number}") if number else segment
        else:
            yield segment
