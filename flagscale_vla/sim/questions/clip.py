"""A recorded episode as questions see it, and what comes of asking one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.records import Image, Segment, Text
from flagscale_vla.sim.episodes import Episode, Truth
from flagscale_vla.sim.questions.wording import Kind
from flagscale_vla.sim.worlds.lens import Lens
from flagscale_vla.sim.worlds.things import Poses, Thing

if TYPE_CHECKING:
    # It imports `mujoco`, which must wait until a renderer is chosen.
    from flagscale_vla.sim.worlds.scene import Scene

FRONT = "front"
"""The camera that stands still and sees the whole table; every robot has one."""
SEEN_PIXELS = 30
"""A thing of which fewer are visible is not asked for."""


class RefusedError(ValueError):
    """The drawn question has no clear answer; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One sample: what is shown, asked, done and answered."""

    kind: Kind
    position: int
    """the frame it begins at; the episode's length stands for how it ended"""
    segments: Sequence[Segment]
    subtask: str = ""
    camera: str = FRONT
    things: tuple[str, ...] = ()
    """names of what it asks for"""


class Clip:
    """The frames 0 to n - 1 of an episode and, at position n, how it ended.

    Args:
        episode: with its truth.
        scene: of the world it was recorded in, which must still be open.
    """

    def __init__(self, episode: Episode, scene: Scene) -> None:
        assert episode.truth is not None
        self.episode, self.scene = episode, scene
        self.truth: Truth = episode.truth
        self.length = len(episode.frames)
        self._masks: dict[tuple[int, str], NDArray[np.bool_]] = {}

    @property
    def cameras(self) -> tuple[str, ...]:
        """In the robot's own order."""
        return tuple(image.name for image in self.truth.ending)

    def images(self, position: int) -> tuple[Image, ...]:
        """What all cameras saw."""
        return self.truth.ending if position == self.length else self.episode.frames[position].images

    def image(self, position: int, camera: str = FRONT) -> Image:
        """What one camera saw."""
        return next(image for image in self.images(position) if image.name == camera)

    def poses(self, position: int) -> Poses:
        """Where everything was."""
        return self.truth.poses[position]

    def lens(self, position: int, camera: str) -> Lens:
        """How a camera saw."""
        return self.scene.lens(self.poses(position), camera)

    def masks(self, position: int, camera: str) -> NDArray[np.bool_]:
        """bool[things, h, w], which pixels show each of the scene's things."""
        key = (position, camera)
        if key not in self._masks:
            self._masks[key] = self.scene.masks(self.poses(position), camera)
        return self._masks[key]

    def mask(self, position: int, camera: str, thing: Thing) -> NDArray[np.bool_]:
        """bool[h, w], which pixels show a thing.

        Raises:
            RefusedError: fewer than `SEEN_PIXELS`.
        """
        mask = self.masks(position, camera)[self.scene.things.index(thing)]
        if mask.sum() < SEEN_PIXELS:
            raise RefusedError(f"a thing is hardly or not visible: fewer than {SEEN_PIXELS} pixels")
        return mask

    def subtask(self, position: int) -> str:
        """The sub-task that is due at a frame, in words."""
        return self.truth.subtasks[self.episode.frames[position].phase]

    def has_passed(self, before: int, after: int) -> bool:
        """Whether the sub-task due at one frame is done at a later one: the expert is further on, or has ended."""
        if after == self.length:
            return True
        order = list(self.truth.subtasks)
        phases = [order.index(self.episode.frames[position].phase) for position in (before, after)]
        return phases[1] > phases[0]


def asked(image: Image, question: str, answer: str) -> list[Segment]:
    """A picture, a question and its answer."""
    return [image, Text(text=question, supervised=False), Text(text=answer, supervised=True)]
