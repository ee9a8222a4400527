"""Rotation vectors, f64[..., 3] in radians: to matrices and back, and the angle between two rotations.

A rotation vector points along the axis and is as long as the angle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def to_matrix(vectors: NDArray[Any]) -> Doubles:
    """Rotation matrices f64[..., 3, 3] of rotation vectors [..., 3], by Rodrigues' formula.

    exp(K) = I + sin(a)/a K + (1 - cos(a))/a^2 K^2, with K v the cross product of the vector, of length a, and v.
    """
    vectors = np.asarray(vectors, np.float64)
    angles = np.linalg.norm(vectors, axis=-1)[..., None, None]
    cross = np.cross(np.eye(3), vectors[..., None, :])
    # NumPy's sinc(x) is sin(pi x) / (pi x), and exact at zero.
    turned = np.sinc(angles / np.pi) * cross + np.sinc(angles / (2 * np.pi)) ** 2 / 2 * (cross @ cross)
    return np.asarray(np.eye(3) + turned)


def to_vector(matrices: NDArray[Any]) -> Doubles:
    """Rotation vectors f64[..., 3], no longer than pi, of rotation matrices [..., 3, 3]; exact near pi too.

    By way of the quaternion q: R gives the matrix 4 q q^T, whose row with the largest diagonal entry is q scaled
    (Shepperd, 1978; Bar-Itzhack, 2000).
    """
    R = np.asarray(matrices, np.float64)
    outer = np.empty((*R.shape[:-2], 4, 4))
    diagonal = np.diagonal(R, axis1=-2, axis2=-1)
    trace = diagonal.sum(axis=-1)
    outer[..., 0, 0] = 1 + trace
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        outer[..., i + 1, i + 1] = 1 + 2 * diagonal[..., i] - trace
        outer[..., 0, i + 1] = outer[..., i + 1, 0] = R[..., k, j] - R[..., j, k]
        outer[..., i + 1, j + 1] = outer[..., j + 1, i + 1] = R[..., i, j] + R[..., j, i]
    best = np.diagonal(outer, axis1=-2, axis2=-1).argmax(axis=-1)
    row = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    return _from_quaternion(row / np.linalg.norm(row, axis=-1, keepdims=True))


def angle_between(first: NDArray[Any], second: NDArray[Any]) -> Doubles:
    """The angle of the rotation from one to the other, f64[...] in [0, pi] radians, of rotation vectors [..., 3].

    It is the geodesic distance on SO(3), whichever side the rotations are applied on.
    """
    one, other = _to_quaternion(np.asarray(first, np.float64)), _to_quaternion(np.asarray(second, np.float64))
    real = (one * other).sum(axis=-1)
    turn = one[..., :1] * other[..., 1:] - other[..., :1] * one[..., 1:] - np.cross(one[..., 1:], other[..., 1:])
    # The arc cosine of `real` alone would lose small angles to rounding.
    return np.asarray(2 * np.arctan2(np.linalg.norm(turn, axis=-1), np.abs(real)))


def _to_quaternion(vectors: Doubles) -> Doubles:
    """Unit quaternions f64[..., 4], real part first."""
    half = np.linalg.norm(vectors, axis=-1, keepdims=True) / 2
    return np.concatenate([np.cos(half), np.sinc(half / np.pi) / 2 * vectors], axis=-1)


def _from_quaternion(quaternions: Doubles) -> Doubles:
    """Rotation vectors of unit quaternions, of either sign."""
    quaternions = np.where(quaternions[..., :1] < 0, -quaternions, quaternions)
    real, imaginary = quaternions[..., :1], quaternions[..., 1:]
    length = np.linalg.norm(imaginary, axis=-1, keepdims=True)
    # sin(half) is the length, so half / sin(half) makes the imaginary part half the rotation vector.
    return np.asarray(2 * imaginary / np.sinc(np.arctan2(length, real) / np.pi))
