"""The spline against SciPy's where there is one, and against the normal equations."""

from __future__ import annotations

import numpy as np
import pytest

from flagscale_vla.action.spline import Spline, spline


def chunk(horizon: int, width: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(5, horizon, width))


@pytest.mark.parametrize(("horizon", "points", "degree"), [(32, 8, 3), (16, 16, 3), (20, 6, 1), (32, 32, 0), (7, 5, 4)])
def test_basis_is_scipys(horizon: int, points: int, degree: int) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    knots = np.concatenate([np.zeros(degree), np.linspace(0, 1, points - degree + 1), np.ones(degree)])
    expected = interpolate.BSpline(knots, np.eye(points), degree)(np.linspace(0, 1, horizon))
    np.testing.assert_allclose(spline(horizon, points, degree, 0.0).basis, expected, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_basis_adds_up_to_one_and_holds_both_ends(degree: int) -> None:
    basis = spline(32, 9, degree, 0.0).basis
    np.testing.assert_allclose(basis.sum(axis=1), 1.0, atol=1e-12)
    assert basis[0, 0] == 1.0
    assert basis[-1, -1] == 1.0


def test_fit_solves_the_normal_equations() -> None:
    values, curve = chunk(32), spline(32, 8, 3, 0.01)
    expected = np.linalg.solve(curve.basis.T @ curve.basis + 0.01 * np.eye(8), curve.basis.T @ values)
    np.testing.assert_allclose(curve.fit(values), expected, atol=1e-12)


@pytest.mark.parametrize(("horizon", "points", "degree"), [(16, 16, 3), (32, 32, 0), (16, 32, 3), (1, 8, 3)])
def test_as_many_points_as_steps_lose_nothing(horizon: int, points: int, degree: int) -> None:
    values, curve = chunk(horizon), spline(horizon, points, degree, 0.0)
    np.testing.assert_allclose(curve.evaluate(curve.fit(values)), values, atol=1e-9)


def test_control_points_do_not_depend_on_the_rate() -> None:
    points = chunk(8)
    fitted = [spline(steps, 8, 3, 0.0).fit(spline(steps, 8, 3, 0.0).evaluate(points)) for steps in (16, 33, 100)]
    for values in fitted:
        np.testing.assert_allclose(values, points, atol=1e-9)


def test_start_pins_the_first_point() -> None:
    values, curve = chunk(32), spline(32, 8, 3, 1e-6)
    start = np.full((5, 3), 0.7)
    pinned = curve.fit(values, start)
    np.testing.assert_array_equal(pinned[:, 0], start)
    np.testing.assert_allclose(curve.evaluate(pinned)[:, 0], start, atol=1e-12)
    # What the rest is fitted to is what the first point leaves over.
    rest, left = curve.basis[:, 1:], values - curve.basis[:, :1] * start[:, None]
    expected = np.linalg.solve(rest.T @ rest + 1e-6 * np.eye(7), rest.T @ left)
    np.testing.assert_allclose(pinned[:, 1:], expected, atol=1e-9)


def test_a_start_where_the_fit_already_begins_changes_nothing() -> None:
    curve = spline(32, 8, 3, 0.0)
    values = curve.evaluate(chunk(8))
    np.testing.assert_allclose(curve.fit(values, values[:, 0]), curve.fit(values), atol=1e-9)


def test_arguments_share_one_spline() -> None:
    assert spline(32, 8, 3, 0.0) is spline(32, 8, 3, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon=0"),
        ({"points": 3}, "points=3, degree=3"),
        ({"degree": -1}, "degree=-1"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"ridge": float("nan")}, "ridge=nan"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spline(**({"horizon": 32, "points": 8, "degree": 3, "ridge": 0.0} | arguments))  # type: ignore[arg-type]


def test_another_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"\[5, 31, 3\]: must be \[..., 32, D\]"):
        spline(32, 8, 3, 0.0).fit(chunk(31))
    with pytest.raises(ValueError, match=r"must be \[..., 8, D\]"):
        spline(32, 8, 3, 0.0).evaluate(chunk(7))
