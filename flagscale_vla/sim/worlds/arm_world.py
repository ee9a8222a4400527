"""What all robosuite worlds share: an arm in an environment, driven by waypoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.records import Observation
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.sim.worlds.arm import METERS_PER_ACTION, RADIANS_PER_ACTION, Arm
from flagscale_vla.sim.worlds.cameras import Cameras, View
from flagscale_vla.sim.worlds.scene import Scene, bodies_under, shown_geoms
from flagscale_vla.sim.worlds.things import GRIPPER, Poses, Thing
from flagscale_vla.sim.worlds.waypoints import WaypointExpert
from flagscale_vla.sim.worlds.world import CONTROL_HZ, as_recorded, checked_action, draw_phrasing

NOISE_SHARE = (0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.0)
"""An action unit is 5 cm or half a radian: turns take less noise than moves."""
SHOWN_GROUPS = (1, 2)
"""robosuite keeps collision shapes in group 0, which is not drawn."""
SUBTASKS = {
    "reach": "move the gripper over the {thing}",
    "lower": "lower the gripper to the {thing}",
    "grasp": "close the gripper on the {thing}",
    "lift": "lift the {thing}",
    "carry": "carry the {thing} over the {place}",
    "place": "lower the {thing} to the {place}",
    "release": "open the gripper",
    "retreat": "move the gripper away",
}
"""The phases of `waypoints` as sentences."""


class ArmWorld:
    """A `World` over a robosuite environment. A subclass says how an episode begins and what the expert does.

    Args:
        task: as `make_world` was given it.
        env: the robosuite environment, without a renderer of its own.
        embodiment: of the arm.
        phrasings: sentences that ask for the task.
        views: camera by name.
        image_pixels: side of a frame; 0 for none.
        max_steps: steps that are enough for the expert.
    """

    noise_share = NOISE_SHARE

    def __init__(
        self,
        task: str,
        *,
        env: Any,
        embodiment: Embodiment,
        phrasings: tuple[str, ...],
        views: Mapping[str, View],
        image_pixels: int,
        max_steps: int,
    ) -> None:
        self.task, self.phrasings, self.max_steps = task, phrasings, max_steps
        self.embodiment = as_recorded(embodiment, image_pixels)
        self.instruction = phrasings[0]
        self.env = env
        shown = views if image_pixels else {}
        self._cameras = Cameras(env.sim.model._model, shown, pixels=image_pixels, task=task, collision_shapes=False)
        self._done = False
        self.arm = Arm(env)
        self.scene = self._open_scene()
        self._expert: WaypointExpert

    @property
    def robot(self) -> str:
        """Name of the embodiment."""
        return self.embodiment.name

    @property
    def subtasks(self) -> dict[str, str]:
        """The expert's phases, as sentences."""
        thing, place = self.moved()
        return {phase: SUBTASKS[phase].format(thing=thing, place=place) for phase in self._expert.phases}

    def moved(self) -> tuple[str, str]:
        """What the task moves, and to what it brings it; the second may be empty."""
        raise NotImplementedError

    def named_bodies(self) -> list[tuple[str, int]]:
        """(name, body) of each thing that questions may name."""
        raise NotImplementedError

    def others(self) -> list[str]:
        """Names of things that are not in the scene."""
        raise NotImplementedError

    def make_expert(self) -> WaypointExpert:
        """An expert for the episode that has just begun."""
        raise NotImplementedError

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed."""
        self.place(seed)
        # The gripper remembers how far it was told to open.
        gripper = self.env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        self.instruction = draw_phrasing(self.phrasings, seed)
        self._done = False
        self._cameras.forget()
        self.settle()
        self._expert = self.make_expert()

    def place(self, seed: int) -> None:
        """Put arm and objects where the episode of this seed begins."""
        with numpy_seed(seed):
            self.env.reset()

    def settle(self) -> None:
        """Let objects that were placed in the air come to rest, with the gripper open."""
        still = np.zeros(len(self.embodiment.action))
        still[-1] = -1.0
        for _ in range(5):
            self.env.step(still)

    def observe(self) -> Observation:
        """Frames of all cameras, and the state f32[7]."""
        return Observation(
            images=self._cameras.frames(self.env.sim.data._data, self.arm.position),
            state=self.arm.state(),
            instruction=self.instruction,
            robot=self.robot,
        )

    def step(self, action: NDArray[np.float32]) -> bool:
        """One control step with f32[7]: move in 5 cm, turn in half radians, gripper -1 open to 1 closed."""
        self.env.step(checked_action(action, len(self.embodiment.action)).astype(np.float64))
        self._done = self._done or bool(self.env._check_success())
        return self._done

    def expert_action(self) -> NDArray[np.float32]:
        """The waypoint expert's answer f32[7]; counts as one step of its program."""
        return self._expert.action()

    def phase(self) -> str:
        """The expert's sub-task."""
        return self._expert.phase

    def poses(self) -> Poses:
        """Where everything is."""
        return self.scene.take(self.env.sim.data._data)

    def _open_scene(self) -> Scene:
        model = self.env.sim.model._model
        hand = [body for body in range(model.nbody) if model.body(body).name.startswith("gripper0_")]
        things = [Thing(name=GRIPPER, geoms=shown_geoms(model, hand, SHOWN_GROUPS))]
        things += [
            Thing(name=name, geoms=shown_geoms(model, bodies_under(model, root), SHOWN_GROUPS))
            for name, root in self.named_bodies()
        ]
        grip = self.env.robots[0].eef_site_id
        return Scene(model, self._cameras, things=things, others=self.others(), grip=grip)

    def close(self) -> None:
        """Free renderer and simulator."""
        self._cameras.close()
        self.env.close()


def arm_embodiment(name: str) -> Embodiment:
    """The layout all arms under OSC_POSE share."""
    return Embodiment(
        name=name,
        state=("x", "y", "z", "rx", "ry", "rz", "finger"),
        action=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
        cameras=("front", "wrist"),
        fps=CONTROL_HZ,
        action_scale=(*[METERS_PER_ACTION] * 3, *[RADIANS_PER_ACTION] * 3, 0.0),
    )


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which robosuite draws from, and put it back as it was afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
