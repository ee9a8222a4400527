"""Rotation vectors against scipy where it is there, and against what must hold everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from flagscale_vla.robots.rotations import angle_between, to_matrix, to_vector

GENERATOR = np.random.default_rng(0)
AXES = GENERATOR.normal(size=(400, 3))
AXES /= np.linalg.norm(AXES, axis=1, keepdims=True)
ANGLES = np.concatenate([[0.0, 1e-12, 1e-7, 1e-3, np.pi - 1e-7, np.pi - 1e-12], GENERATOR.uniform(0, np.pi, 394)])
VECTORS = AXES * ANGLES[:, None]


def test_matrices_are_rotations_about_the_axis() -> None:
    matrices = to_matrix(VECTORS)
    assert matrices.shape == (400, 3, 3)
    np.testing.assert_allclose(matrices @ matrices.mT, np.broadcast_to(np.eye(3), matrices.shape), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=1e-14)
    np.testing.assert_allclose((matrices @ AXES[..., None])[..., 0], AXES, atol=1e-14)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    np.testing.assert_allclose(to_matrix(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0], atol=1e-15)


def test_there_and_back_is_the_same_vector() -> None:
    np.testing.assert_allclose(to_vector(to_matrix(VECTORS)), VECTORS, atol=2e-14)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, -0.8, 0)])
def test_half_turns_come_back_up_to_their_sign(axis: tuple[float, float, float]) -> None:
    vector = np.pi * np.asarray(axis)
    found = to_vector(to_matrix(vector))
    assert min(np.abs(found - vector).max(), np.abs(found + vector).max()) < 1e-14


def test_angles_between_rotations_about_one_axis_are_their_difference() -> None:
    np.testing.assert_allclose(angle_between(VECTORS, AXES * 0.5), np.abs(ANGLES - 0.5), atol=1e-14)
    np.testing.assert_allclose(angle_between(AXES * 1e-9, AXES * 3e-9), 2e-9, rtol=1e-12)


def test_more_than_half_a_turn_is_measured_the_short_way() -> None:
    np.testing.assert_allclose(angle_between(AXES * 3.0, AXES * -3.0), 2 * np.pi - 6.0, atol=1e-13)


def test_the_angle_is_that_of_the_relative_rotation_on_either_side() -> None:
    one, other = VECTORS, VECTORS[::-1]
    left = to_vector(to_matrix(one) @ to_matrix(other).mT)
    right = to_vector(to_matrix(one).mT @ to_matrix(other))
    for relative in (left, right):
        np.testing.assert_allclose(np.linalg.norm(relative, axis=-1), angle_between(one, other), atol=1e-13)


def test_scipy_agrees() -> None:
    rotations = pytest.importorskip("scipy.spatial.transform").Rotation
    theirs = rotations.from_rotvec(VECTORS)
    np.testing.assert_allclose(to_matrix(VECTORS), theirs.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(to_vector(theirs.as_matrix()), VECTORS, atol=1e-13)
    between = (theirs.inv() * rotations.from_rotvec(VECTORS[::-1])).magnitude()
    np.testing.assert_allclose(angle_between(VECTORS, VECTORS[::-1]), between, atol=1e-13)
