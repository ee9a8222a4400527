"""A robosuite 1.4 arm under its OSC_POSE controller, read and driven."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]

METERS_PER_ACTION = 0.05
RADIANS_PER_ACTION = 0.5
"""What a whole unit asks OSC_POSE for, from wherever the hand is; in one step the hand does about a fifth of it."""
DOWN = np.diag([1.0, -1.0, -1.0])
"""A hand that points at the table. Rotations are told relative to it: around half a turn, an axis-angle vector jumps
from one sign to the other."""


class Arm:
    """The one arm of a robosuite environment.

    Args:
        env: a robosuite environment that was reset; its data are read anew at each call.
    """

    def __init__(self, env: Any) -> None:
        self._env, self._robot = env, env.robots[0]

    @property
    def position(self) -> Vector:
        """Of the point between the fingers, f64[3] in metres."""
        return np.array(self._env.sim.data.site_xpos[self._robot.eef_site_id])

    @property
    def rotation(self) -> Vector:
        """Of the hand, f64[3, 3]."""
        return np.array(self._env.sim.data.site_xmat[self._robot.eef_site_id]).reshape(3, 3)

    @property
    def finger(self) -> float:
        """Where the first finger's joint is, in the gripper's own units."""
        return float(self._env.sim.data.qpos[self._robot._ref_gripper_joint_pos_indexes[0]])

    def state(self) -> NDArray[np.float32]:
        """f32[7]: position, rotation vector relative to `DOWN`, finger."""
        turn = Rotation.from_matrix(self.rotation @ DOWN.T).as_rotvec()
        return np.concatenate([self.position, turn, [self.finger]]).astype(np.float32)

    def angle_to(self, rotation: Vector) -> float:
        """Radians between the hand and a rotation f64[3, 3]."""
        return float(np.linalg.norm(self._turn_to(rotation)))

    def toward(self, position: Vector, rotation: Vector, grip: float, gain: float) -> NDArray[np.float32]:
        """The action f32[7] that moves the hand towards a pose, clipped to [-1, 1].

        Args:
            position: f64[3] in metres.
            rotation: f64[3, 3].
            grip: -1 opens, 1 closes.
            gain: 1 asks for the whole difference where the controller allows it.
        """
        move = (position - self.position) / METERS_PER_ACTION * gain
        turn = self._turn_to(rotation) / RADIANS_PER_ACTION * gain
        return np.clip(np.concatenate([move, turn, [grip]]), -1.0, 1.0).astype(np.float32)

    def _turn_to(self, rotation: Vector) -> Vector:
        return Rotation.from_matrix(rotation @ self.rotation.T).as_rotvec()


def yawed(rotation: Vector, angle: float) -> Vector:
    """A rotation f64[3, 3] turned about the vertical by `angle` radians."""
    return Rotation.from_euler("z", angle).as_matrix() @ rotation
