"""Poses of a hand and the steps between them, as RoboBrain-X0 writes them: a row is x y z, roll pitch yaw, gripper.

Metres and radians. roll, pitch and yaw turn about the fixed axes x, y and z in that order (scipy's `xyz`), so that
R = Rz(yaw) Ry(pitch) Rx(roll). A step is seen in the frame of the base: p' = p + dp and R' = exp(dr) R, with dr a
rotation vector on the left; the gripper of a step is the one that is reached, not a difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.robots.rotations import Doubles, to_matrix, to_vector

POSE = 7
"""Numbers of one hand."""
POSITION, ROTATION, GRIPPER = slice(0, 3), slice(3, 6), slice(6, 7)


def euler_to_matrix(angles: NDArray[Any]) -> Doubles:
    """Rotation matrices f64[..., 3, 3] of roll, pitch and yaw [..., 3]."""
    angles = np.asarray(angles, np.float64)
    roll, pitch, yaw = (to_matrix(angles[..., axis, None] * np.eye(3)[axis]) for axis in range(3))
    return np.asarray(yaw @ pitch @ roll)


def matrix_to_euler(matrices: NDArray[Any]) -> Doubles:
    """Roll, pitch and yaw f64[..., 3] of rotation matrices; pitch lies in [-pi/2, pi/2].

    Where pitch is a quarter turn, roll and yaw turn about one axis: roll is then 0.
    """
    R = np.asarray(matrices, np.float64)
    level = np.hypot(R[..., 2, 1], R[..., 2, 2])
    pitch = np.arctan2(-R[..., 2, 0], level)
    upright = level < 1e-7
    roll = np.where(upright, 0.0, np.arctan2(R[..., 2, 1], R[..., 2, 2]))
    yaw = np.where(upright, np.arctan2(-R[..., 0, 1], R[..., 1, 1]), np.arctan2(R[..., 1, 0], R[..., 0, 0]))
    return np.stack([roll, pitch, yaw], axis=-1)


def matrix_to_six(matrices: NDArray[Any]) -> Doubles:
    """The first two columns of rotation matrices, one after the other, f64[..., 6] (Zhou et al., 2019)."""
    R = np.asarray(matrices, np.float64)
    return np.concatenate([R[..., :, 0], R[..., :, 1]], axis=-1)


def six_to_matrix(six: NDArray[Any]) -> Doubles:
    """The rotation matrices nearest to two columns [..., 6], by Gram and Schmidt, the first column first."""
    six = np.asarray(six, np.float64)
    first = six[..., :3] / np.linalg.norm(six[..., :3], axis=-1, keepdims=True)
    second = six[..., 3:] - (first * six[..., 3:]).sum(axis=-1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def pose_steps(start: NDArray[Any], end: NDArray[Any]) -> Doubles:
    """The steps f64[..., 7 n] that lead from poses to poses [..., 7 n], hand after hand."""
    before, after = hands_of(start), hands_of(end)
    turn = euler_to_matrix(after[..., ROTATION]) @ euler_to_matrix(before[..., ROTATION]).mT
    moved = after[..., POSITION] - before[..., POSITION]
    return joined([moved, to_vector(turn), after[..., GRIPPER]])


def follow_steps(start: NDArray[Any], steps: NDArray[Any]) -> Doubles:
    """The poses f64[T, 7 n] that steps [T, 7 n] lead to one after the other: the inverse of `pose_steps`.

    Args:
        start: [7 n], the pose before the first step.
    """
    first, moves = hands_of(start), hands_of(steps)
    positions = first[..., POSITION] + np.cumsum(moves[..., POSITION], axis=0)
    turns, rotation = to_matrix(moves[..., ROTATION]), euler_to_matrix(first[..., ROTATION])
    angles = []
    for turn in turns:
        rotation = turn @ rotation
        angles.append(matrix_to_euler(rotation))
    return joined([positions, np.reshape(angles, positions.shape), moves[..., GRIPPER]])


def pose_states(poses: NDArray[Any]) -> Doubles:
    """Position, rotation as six numbers, and gripper, f64[..., 10 n], of poses [..., 7 n]."""
    hands = hands_of(poses)
    six = matrix_to_six(euler_to_matrix(hands[..., ROTATION]))
    return joined([hands[..., POSITION], six, hands[..., GRIPPER]])


def hands_of(rows: NDArray[Any]) -> Doubles:
    """f64[..., n, 7] of rows [..., 7 n].

    Raises:
        ValueError: the rows do not divide into hands.
    """
    rows = np.asarray(rows, np.float64)
    if rows.shape[-1] == 0 or rows.shape[-1] % POSE:
        raise ValueError(f"rows of shape {list(rows.shape)} must hold {POSE} numbers for each hand")
    return rows.reshape(*rows.shape[:-1], -1, POSE)


def joined(parts: list[Doubles]) -> Doubles:
    """Parts [..., n, k] of hands side by side, f64[..., n times the sum of k]."""
    whole = np.concatenate(parts, axis=-1)
    return whole.reshape(*whole.shape[:-2], -1)
