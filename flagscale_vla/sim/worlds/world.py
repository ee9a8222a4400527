"""What recording and evaluation ask of a simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.records import Observation
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.sim.worlds.things import Poses

if TYPE_CHECKING:
    # It imports `mujoco`, which must wait until a renderer is chosen.
    from flagscale_vla.sim.worlds.scene import Scene

CONTROL_HZ = 20
"""Control steps per second, the same in every world."""


class World(Protocol):
    """One task of one simulator with one robot, stepped at 20 Hz. A renderer is opened only by `observe`."""

    task: str
    """as `make_world` was given it"""
    embodiment: Embodiment
    phrasings: tuple[str, ...]
    """sentences that all ask for this task"""
    instruction: str
    """the phrasing of the running episode, drawn from its seed"""
    max_steps: int
    """control steps that are plenty for the expert"""
    noise_share: tuple[float, ...]
    """for each action dim, the share of a run's noise that it takes; none for a gripper, which would drop things"""

    scene: Scene
    """the things there are, for whoever asks about them"""

    @property
    def robot(self) -> str:
        """Name of the embodiment."""
        ...

    @property
    def subtasks(self) -> Mapping[str, str]:
        """The running episode's phases in the expert's order, each as a sentence that asks for it."""
        ...

    def reset(self, seed: int) -> None:
        """Begin an episode. It depends on `seed` alone, never on what was run before; seed in [0, 2**32)."""
        ...

    def observe(self) -> Observation:
        """What the robot sees now, from all its cameras; no picture where it has none.

        Raises:
            FrameError: a frame is blank or stale.
        """
        ...

    def step(self, action: NDArray[np.float32]) -> bool:
        """One control step of 1/20 s with action f32[A0] in [-1, 1]; whether the task has been done so far.

        Raises:
            ValueError: the action has another shape or holds NaN or infinity.
        """
        ...

    def expert_action(self) -> NDArray[np.float32]:
        """What the scripted expert would do now, f32[A0], clipped to [-1, 1]. Ask once per control step."""
        ...

    def phase(self) -> str:
        """The expert's sub-task: reach, lower, grasp, pull, push, press, carry, ..."""
        ...

    def poses(self) -> Poses:
        """Where everything is, as the frames of `observe` would show it."""
        ...

    def close(self) -> None:
        """Give the simulator's memory and the renderer back."""
        ...


def as_recorded(embodiment: Embodiment, image_pixels: int) -> Embodiment:
    """The robot as its episodes show it: without cameras where there are no pictures."""
    return embodiment if image_pixels else replace(embodiment, cameras=())


def checked_action(action: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The action as f32[width].

    Raises:
        ValueError: it has another shape or holds NaN or infinity.
    """
    action = np.asarray(action, np.float32)
    if action.shape != (width,) or not np.isfinite(action).all():
        raise ValueError(f"action {action.tolist()} must be {width} finite numbers in [-1, 1]")
    return action


def draw_phrasing(phrasings: tuple[str, ...], seed: int) -> str:
    """One of the phrasings, from the episode's seed."""
    return phrasings[int(np.random.default_rng([seed, 1]).integers(len(phrasings)))]
