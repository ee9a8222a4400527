"""B-splines over a chunk's time: from any number of steps to a fixed number of control points, and back.

Clamped uniform knots over [0, 1]; a chunk's first step is at 0 and its last at 1. Both directions are linear, so each
is one matrix, made in float64 and kept.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


class Spline:
    """Fits control points to chunks of `horizon` steps by ridge least squares, and evaluates them at those steps.

    Args:
        horizon: steps H of a chunk, at least 1.
        points: control points T_c, more than `degree`.
        degree: of the polynomial pieces: 0 steps, 3 is cubic.
        ridge: weight of the control points' squares in a fit. With 0, of several best fits the smallest is taken.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, *, horizon: int, points: int, degree: int, ridge: float) -> None:
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: a chunk has at least 1 step, as 32")
        if degree < 0 or points <= degree:
            raise ValueError(
                f"points={points}, degree={degree}: degree must be at least 0 and points above it, as 8, 3"
            )
        if not 0.0 <= ridge < np.inf:
            raise ValueError(f"ridge={ridge}: must be finite and not negative, as 1e-6")
        self.horizon, self.points, self.degree, self.ridge = horizon, points, degree, ridge

    @cached_property
    def basis(self) -> Doubles:
        """Phi, f64[H, T_c]: the value of each control point's basis function at each step; rows add up to 1."""
        return _basis(self.points, self.degree, _steps(self.horizon))

    @cached_property
    def fitting(self) -> Doubles:
        """(Phi^T Phi + ridge I)^-1 Phi^T, f64[T_c, H]."""
        return _ridge_inverse(self.basis, self.ridge)

    @cached_property
    def pinned(self) -> Doubles:
        """As `fitting`, for all control points but the first, which is zero: f64[T_c - 1, H]."""
        return _ridge_inverse(self.basis[:, 1:], self.ridge)

    def fit(self, values: NDArray[Any], start: NDArray[Any] | None = None) -> Doubles:
        """argmin over c of |Phi c - values|^2 + ridge |c|^2, for every dim by itself.

        Args:
            values: [..., H, D].
            start: [..., D], where the curve begins: the first control point is pinned to it.

        Returns:
            f64[..., T_c, D].

        Raises:
            ValueError: `values` has another number of steps.
        """
        if values.ndim < 2 or values.shape[-2] != self.horizon:
            raise ValueError(f"values of shape {list(values.shape)}: must be [..., {self.horizon}, D]")
        if start is None:
            return np.asarray(self.fitting @ values)
        first = np.asarray(start, np.float64)[..., None, :]
        rest = self.pinned @ (values - self.basis[:, :1] * first)
        return np.concatenate([np.broadcast_to(first, (*rest.shape[:-2], 1, rest.shape[-1])), rest], axis=-2)

    def evaluate(self, points: NDArray[Any]) -> Doubles:
        """The curve at every step, f64[..., H, D], from control points [..., T_c, D].

        Raises:
            ValueError: another number of control points.
        """
        if points.ndim < 2 or points.shape[-2] != self.points:
            raise ValueError(f"points of shape {list(points.shape)}: must be [..., {self.points}, D]")
        return np.asarray(self.basis @ points)


@cache
def spline(horizon: int, points: int, degree: int, ridge: float) -> Spline:
    """The one spline of these arguments, whose operators are made once."""
    return Spline(horizon=horizon, points=points, degree=degree, ridge=ridge)


def _steps(horizon: int) -> Doubles:
    """When each step is, f64[H] in [0, 1]."""
    return np.linspace(0.0, 1.0, horizon) if horizon > 1 else np.zeros(1)


def _basis(points: int, degree: int, times: Doubles) -> Doubles:
    """Cox and de Boor's recursion (de Boor, 1978, chapter X) on clamped uniform knots, f64[len(times), points]."""
    pieces = points - degree
    knots = np.concatenate([np.zeros(degree), np.linspace(0.0, 1.0, pieces + 1), np.ones(degree)])
    # The last piece is closed on the right: the end of the chunk belongs to it.
    piece = degree + np.minimum((times * pieces).astype(np.int64), pieces - 1)
    values = (piece[:, None] == np.arange(points + degree)).astype(np.float64)
    for order in range(1, degree + 1):
        left, right = knots[: -order - 1], knots[order + 1 :]
        rising = _share(times[:, None] - left, knots[order:-1] - left)
        falling = _share(right - times[:, None], right - knots[1:-order])
        values = rising * values[:, :-1] + falling * values[:, 1:]
    return values


def _share(part: Doubles, whole: Doubles) -> Doubles:
    """part / whole, and 0 where a run of equal knots leaves nothing to share."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _ridge_inverse(basis: Doubles, ridge: float) -> Doubles:
    """(B^T B + ridge I)^-1 B^T, by the singular values of B, which keeps small ridges exact."""
    left, singular, right = np.linalg.svd(basis, full_matrices=False)
    alive = singular > 1e-12 * singular.max(initial=0.0)
    factor = np.divide(singular, singular**2 + ridge, out=np.zeros_like(singular), where=alive)
    return np.asarray((right.T * factor) @ left.T)
