"""Steps between poses and back, against scipy's rotations and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale_vla.robots.poses import (
    euler_to_matrix,
    follow_steps,
    matrix_to_euler,
    matrix_to_six,
    pose_states,
    pose_steps,
    six_to_matrix,
)

ANGLES = np.random.default_rng(0).uniform(-np.pi, np.pi, (500, 3)) * [1, 0.5, 1]
QUARTER = np.asarray([[0.3, np.pi / 2, 0.4], [-2.0, -np.pi / 2, 1.0], [0.0, np.pi / 2, 0.0]])


def walk(steps: int, hands: int = 2) -> NDArray[np.float64]:
    """Poses [steps, 7 hands] of hands that turn anywhere."""
    generator = np.random.default_rng(steps)
    poses = np.cumsum(generator.normal(size=(steps, hands, 7)) * [*[0.01] * 3, *[0.2] * 3, 0.05], axis=0)
    poses[..., 3:6] = (poses[..., 3:6] + np.pi) % (2 * np.pi) - np.pi
    return poses.reshape(steps, -1)


def test_scipy_agrees() -> None:
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    np.testing.assert_allclose(euler_to_matrix(ANGLES), rotation.from_euler("xyz", ANGLES).as_matrix(), atol=1e-14)
    np.testing.assert_allclose(matrix_to_euler(euler_to_matrix(ANGLES)), ANGLES, atol=1e-8)
    poses = walk(50)
    steps = pose_steps(poses[:-1], poses[1:])
    for hand in (slice(3, 6), slice(10, 13)):
        turns = rotation.from_euler("xyz", poses[1:, hand]) * rotation.from_euler("xyz", poses[:-1, hand]).inv()
        np.testing.assert_allclose(steps[:, hand], turns.as_rotvec(), atol=1e-12)
    # Following them: scipy composes the same rotations from the left.
    current = rotation.from_euler("xyz", poses[0, 3:6])
    for step, pose in zip(steps, follow_steps(poses[0], steps), strict=True):
        current = rotation.from_rotvec(step[3:6]) * current
        np.testing.assert_allclose(euler_to_matrix(pose[3:6]), current.as_matrix(), atol=1e-12)


@pytest.mark.parametrize("angles", QUARTER)
def test_a_hand_that_points_straight_up_comes_back(angles: NDArray[np.float64]) -> None:
    matrix = euler_to_matrix(angles)
    np.testing.assert_allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-9)


def test_a_step_turns_about_the_axes_of_the_base() -> None:
    """A hand that points along y rolls about the base's x: its own roll would be another turn."""
    start = np.asarray([0, 0, 0, 0, 0, np.pi / 2, 0.2])
    end = np.asarray([0.1, 0, -0.3, *matrix_to_euler(euler_to_matrix([0.5, 0, 0]) @ euler_to_matrix(start[3:6])), 0.7])
    np.testing.assert_allclose(pose_steps(start, end), [0.1, 0, -0.3, 0.5, 0, 0, 0.7], atol=1e-14)


@pytest.mark.parametrize("hands", [1, 2])
def test_following_the_steps_leads_back_to_the_poses(hands: int) -> None:
    poses = walk(300, hands)
    found = follow_steps(poses[0], pose_steps(poses[:-1], poses[1:]))
    for hand in range(hands):
        turn = slice(7 * hand + 3, 7 * hand + 6)
        np.testing.assert_allclose(euler_to_matrix(found[:, turn]), euler_to_matrix(poses[1:, turn]), atol=1e-11)
        rest = [7 * hand + dim for dim in (0, 1, 2, 6)]
        np.testing.assert_allclose(found[:, rest], poses[1:, rest], atol=1e-12)


def test_steps_kept_as_float32_lead_to_within_a_micrometre() -> None:
    poses = walk(31)
    steps = pose_steps(poses[:-1], poses[1:]).astype(np.float32)
    found = follow_steps(poses[0], steps)
    np.testing.assert_allclose(found[:, :3], poses[1:, :3], atol=1e-6)
    np.testing.assert_allclose(euler_to_matrix(found[:, 3:6]), euler_to_matrix(poses[1:, 3:6]), atol=1e-5)


def test_six_numbers_are_two_columns_and_come_back() -> None:
    matrices = euler_to_matrix(ANGLES)
    np.testing.assert_array_equal(matrix_to_six(matrices)[:, :3], matrices[:, :, 0])
    np.testing.assert_allclose(six_to_matrix(matrix_to_six(matrices)), matrices, atol=1e-14)
    # What a model predicts is no rotation; what it becomes is one.
    loose = six_to_matrix(matrix_to_six(matrices) * 1.3 + 0.05)
    np.testing.assert_allclose(loose @ loose.mT, np.broadcast_to(np.eye(3), loose.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(loose), 1, atol=1e-12)


def test_a_state_is_position_six_numbers_and_gripper_hand_after_hand() -> None:
    poses = walk(4)
    states = pose_states(poses)
    assert states.shape == (4, 20)
    np.testing.assert_array_equal(states[:, [0, 1, 2, 9, 10, 11, 12, 19]], poses[:, [0, 1, 2, 6, 7, 8, 9, 13]])
    np.testing.assert_allclose(six_to_matrix(states[:, 13:19]), euler_to_matrix(poses[:, 10:13]), atol=1e-14)


def test_rows_that_are_no_hands_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 8\] must hold 7 numbers for each hand"):
        pose_states(np.zeros((3, 8)))
