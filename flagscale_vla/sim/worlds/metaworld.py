"""Meta-World's Sawyer arm with its scripted experts, at 20 Hz."""

from __future__ import annotations

import sys
import warnings

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

from flagscale_vla.records import Observation
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.sim.worlds.cameras import Cameras, View
from flagscale_vla.sim.worlds.metaworld_skills import SKILLS
from flagscale_vla.sim.worlds.metaworld_things import SUBTASKS, others_of, things_of
from flagscale_vla.sim.worlds.scene import Scene
from flagscale_vla.sim.worlds.things import Poses
from flagscale_vla.sim.worlds.world import CONTROL_HZ, as_recorded, checked_action, draw_phrasing

ACTION_REPEAT = 4
"""Meta-World steps at 80 Hz."""
METERS_PER_ACTION = 0.04
"""How far a whole unit moves the point that the hand is pulled to: 1 cm (`SawyerXYZEnv.action_scale`) four times. The
hand follows a little late."""
STATE_DIM = 4
"""What of the 39 observed numbers is the robot's own: hand x, y, z in metres, gripper opening in [0, 1]."""
MAX_STEPS = 40
FRONT_POSITION = (0.75, 0.075, 0.7)
VIEWS = {"front": View(camera="corner2", turned=True, fov_degrees=45.0), "wrist": View(camera="gripperPOV")}

SAWYER = Embodiment(
    name="metaworld_sawyer",
    state=("x", "y", "z", "gripper"),
    action=("dx", "dy", "dz", "gripper"),
    cameras=("front", "wrist"),
    fps=CONTROL_HZ,
    action_scale=(METERS_PER_ACTION, METERS_PER_ACTION, METERS_PER_ACTION, 0.0),
)


class MetaWorld:
    """A `World` over one Meta-World task.

    Args:
        task: `metaworld/NAME`, NAME a key of `SKILLS`.
        image_pixels: side of a camera frame; 0 for none.
    """

    max_steps = MAX_STEPS
    noise_share = (1.0, 1.0, 1.0, 0.0)

    def __init__(self, task: str, image_pixels: int) -> None:
        name = task.removeprefix("metaworld/")
        self.task, self.embodiment = task, as_recorded(SAWYER, image_pixels)
        self.phrasings, self._phase = SKILLS[name].phrasings, SKILLS[name].phase
        self.instruction = self.phrasings[0]
        self._env = open_env(f"{name}-v3")
        self._expert = ENV_POLICY_MAP[f"{name}-v3"]()
        model = self._env.model
        model.camera("corner2").pos[:] = FRONT_POSITION
        self._cameras = Cameras(model, VIEWS if image_pixels else {}, pixels=image_pixels, task=task)
        self.subtasks = SUBTASKS[name]
        grip = model.site("endEffector").id
        self.scene = Scene(model, self._cameras, things=things_of(model, name), others=others_of(name), grip=grip)
        self._seen: NDArray[np.float64] = np.zeros(39)
        self._done = False

    @property
    def robot(self) -> str:
        """Name of the embodiment."""
        return self.embodiment.name

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed: where the object and the goal are follows from it."""
        # `env.reset(seed=...)` ignores its seed.
        self._env.seed(seed)
        self._env.reset()
        # Meta-World moves objects without telling the physics: until the first step, pictures and observation would
        # show where the last episode had them.
        mujoco.mj_forward(self._env.model, self._env.data)
        self._seen = self._env._get_obs()
        self._done = False
        self.instruction = draw_phrasing(self.phrasings, seed)
        self._cameras.forget()

    def observe(self) -> Observation:
        """Frames `front` and `wrist`, and the state f32[4]."""
        return Observation(
            images=self._cameras.frames(self._env.data, self._seen[:3]),
            state=self._seen[:STATE_DIM].astype(np.float32),
            instruction=self.instruction,
            robot=self.robot,
        )

    def step(self, action: NDArray[np.float32]) -> bool:
        """One control step with f32[4]: hand motion in units of 4 cm, gripper -1 open to 1 closed."""
        action = checked_action(action, len(self.embodiment.action))
        for _ in range(ACTION_REPEAT):
            self._seen, _, _, _, info = self._env.step(action)
            self._done = self._done or bool(info["success"])
        return self._done

    def expert_action(self) -> NDArray[np.float32]:
        """The scripted policy's answer, f32[4]."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant")
            # A copy: some policies write into what they are given.
            action = self._expert.get_action(self._seen.copy())
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def phase(self) -> str:
        """The expert's sub-task, from where hand and object are."""
        return self._phase(self._seen[:3], float(self._seen[3]), self._seen[4:7])

    def poses(self) -> Poses:
        """Where everything is."""
        return self.scene.take(self._env.data)

    def close(self) -> None:
        """Free renderer and simulator."""
        self._cameras.close()
        self._env.close()


def open_env(name: str):  # type: ignore[no-untyped-def]
    """Meta-World's environment with the goal in its observation and placements drawn from `env.seed(...)`.

    `gym.make("Meta-World/MT1")` would offer 50 fixed placements and take seconds to draw them.
    """
    env = ALL_V3_ENVIRONMENTS[name]()
    env._set_task_called = True
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._partially_observable = False
    # Cached while the goal was still hidden, and observations are clipped to it.
    del env.sawyer_observation_space
    env.max_path_length = sys.maxsize
    return env
