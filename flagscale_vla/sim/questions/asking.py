"""The questions of an episode, as samples that a shard holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flagscale_vla.records import Segment
from flagscale_vla.sim.episodes import Episode, key_of
from flagscale_vla.sim.questions.clip import Clip, Question, RefusedError
from flagscale_vla.sim.questions.course import ask_next, ask_plan, ask_progress, ask_success, ask_trajectory
from flagscale_vla.sim.questions.interleaved import ask_action
from flagscale_vla.sim.questions.places import ask_box, ask_count, ask_point, ask_relation
from flagscale_vla.sim.questions.wording import Kind

if TYPE_CHECKING:
    from flagscale_vla.sim.worlds.scene import Scene

Ask = Callable[[Clip, np.random.Generator], Question]

ROUND = (*Kind, Kind.action, Kind.action)
"""So often each kind comes in a row of as many questions."""
TRIES = 4
"""Draws of frame and things, before a question is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What `ShardWriter.write` takes."""

    kind: Kind
    key: str
    segments: list[Segment]
    meta: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A question that was wanted and has no clear answer."""

    key: str
    """the sample's, had there been one"""
    kind: str
    reason: str
    """of the last draw"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How episodes are asked about."""

    count: int
    """questions wanted of each episode"""
    steps: int
    """of an action turn, before the robot looks again"""
    horizon: int
    """of the stored chunk"""
    seed: int

    def ask(self, episode: Episode, scene: Scene) -> Iterator[Sample | Refusal]:
        """The questions of one episode, with its truth. They depend on the episode and the settings alone."""
        if self.count == 0:
            return
        clip = Clip(episode, scene)
        for number in range(self.count):
            key = f"{key_of(episode)}-q{number:03d}"
            kind = self.kind(episode, number)
            draws = generator(self.seed, key)
            question = draw_question(self._asks()[kind], clip, draws)
            if isinstance(question, Question):
                yield Sample(kind=kind, key=key, segments=list(question.segments), meta=meta_of(episode, question))
            else:
                yield Refusal(key=key, kind=kind.value, reason=question)

    def kind(self, episode: Episode, number: int) -> Kind:
        """The kind of a question. A task's questions, counted through its episodes, go through all kinds in rows of
        `ROUND`, each row in an order of its own."""
        row, place = divmod(episode.number * self.count + number, len(ROUND))
        order = generator(self.seed, f"{episode.task}/{row}").permutation(len(ROUND))
        return ROUND[order[place]]

    def _asks(self) -> dict[Kind, Ask]:
        return {
            Kind.box: ask_box,
            Kind.point: ask_point,
            Kind.relation: ask_relation,
            Kind.count: ask_count,
            Kind.plan: ask_plan,
            Kind.next: ask_next,
            Kind.progress: ask_progress,
            Kind.success: ask_success,
            Kind.trajectory: ask_trajectory,
            Kind.action: partial(ask_action, steps=self.steps, horizon=self.horizon),
        }


def draw_question(ask: Ask, clip: Clip, draws: np.random.Generator) -> Question | str:
    """The first of `TRIES` draws that has a clear answer, or why the last one has none."""
    reason = ""
    for _ in range(TRIES):
        try:
            return ask(clip, draws)
        except RefusedError as error:
            reason = str(error)
    return reason


def generator(seed: int, key: str) -> np.random.Generator:
    """Draws that belong to a key."""
    digest = hashlib.blake2b(f"{seed}/questions/{key}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def meta_of(episode: Episode, question: Question) -> dict[str, object]:
    """What `KEY.json` keeps of a question."""
    position, length = question.position, len(episode.frames)
    return {
        "source": episode.task.split("/")[0],
        "fps": episode.fps,
        "task": episode.task,
        "episode": episode.number,
        "frame": position,
        "num_frames": length,
        "phase": episode.frames[position].phase if position < length else "done",
        "instruction": episode.instruction,
        "kind": question.kind.value,
        "camera": question.camera,
        **({"subtask": question.subtask} if question.subtask else {}),
        **({"things": list(question.things)} if question.things else {}),
    }
