"""Bins for each value, and BEAST's bins for each control point."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flagscale_vla.action.beast import Beast, BeastSettings, fit_beast
from flagscale_vla.action.binning import Binning
from flagscale_vla.action.spline import Spline
from flagscale_vla.action.tokenizer import Floats
from flagscale_vla.action.uniform import from_bins, to_bins
from flagscale_vla.action.units import Units
from tests.action.chunks import ACTIONS, HORIZON, ROBOTS, make_chunks, statistics_of, training_chunks, units
from tests.action.kinds import BEAST


def test_bins_are_equal_and_closed_at_both_ends() -> None:
    values = np.array([-3.0, 0.0, 0.2499, 0.25, 0.5, 0.99, 1.0, 7.0])
    np.testing.assert_array_equal(to_bins(values, 4), [0, 0, 0, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(to_bins(from_bins(np.arange(256), 256), 256), np.arange(256))


def test_a_value_is_off_by_half_a_bin_at_most() -> None:
    binning = Binning(bins=32, units=units())
    chunks = make_chunks("panda", 40, 8)
    inside = np.clip(units().normalize("panda", chunks), -1.0, 1.0)
    decoded = units().normalize("panda", binning.decode("panda", binning.encode("panda", chunks), HORIZON))
    assert np.abs(decoded - inside).max() <= 1 / 32 + 1e-5


def test_codes_go_step_by_step() -> None:
    binning = Binning(bins=32, units=units())
    chunks = make_chunks("sawyer", 3, 8)
    whole = binning.encode("sawyer", chunks)
    for step in range(HORIZON):
        single = binning.encode("sawyer", chunks[:, step : step + 1])
        for string, part in zip(whole, single, strict=True):
            np.testing.assert_array_equal(string[4 * step : 4 * step + 4], part)


@pytest.mark.parametrize("bins", [1, 0, -4])
def test_one_bin_is_refused(bins: int) -> None:
    with pytest.raises(ValueError, match=f"bins={bins}: must be at least 2"):
        Binning(bins=bins, units=units())
    with pytest.raises(ValueError, match=f"bins={bins}: must be at least 2"):
        dataclasses.replace(BEAST, bins=bins)


def spline_chunks(count: int, seed: int) -> tuple[Floats, np.ndarray]:
    """Chunks of the sawyer that are splines of degree 3 with 5 points, grippers of degree 0; and their points."""
    points = np.random.default_rng(seed).uniform(-1, 1, (count, 5, 4))
    curves = [Spline(horizon=HORIZON, points=5, degree=degree, ridge=0.0) for degree in (3, 0)]
    chunks = np.concatenate([curves[0].evaluate(points[..., :3]), curves[1].evaluate(points[..., 3:])], axis=-1)
    return chunks.astype(np.float32), points


def test_beast_keeps_what_is_a_spline() -> None:
    settings = BeastSettings(points=5, degree=3, gripper_degree=0, ridge=0.0, bins=1024)
    fitted, _ = spline_chunks(3000, 0)
    own = Units(ROBOTS, {"sawyer": statistics_of(fitted)})
    beast = fit_beast({"sawyer": fitted}, own, settings)
    chunks, points = spline_chunks(50, 1)
    codes = beast.encode("sawyer", chunks)
    assert {string.shape for string in codes} == {(20,)}
    # A bin of a control point is 2/1024 wide, and the curve lies between its points.
    np.testing.assert_allclose(beast.decode("sawyer", codes, HORIZON), chunks, atol=0.01)
    # Control point by control point, all dims of one side by side: more of a dim is a higher code.
    rows = np.stack(codes).reshape(50, 5, 4)
    for point in range(5):
        for dim in range(4):
            assert np.corrcoef(rows[:, point, dim], points[:, point, dim])[0, 1] > 0.999


def test_grippers_stay_steps() -> None:
    chunks = np.zeros((1, HORIZON, 4), np.float32)
    chunks[0, 8:, 3], chunks[0, :8, 3] = 1.0, -1.0
    settings = BeastSettings(points=4, degree=3, gripper_degree=0, ridge=0.0, bins=256)
    beast = fit_beast(training_chunks(), units(), settings)
    gripper = beast.decode("sawyer", beast.encode("sawyer", chunks), HORIZON)[0, :, 3]
    np.testing.assert_allclose(gripper, chunks[0, :, 3], atol=0.01)


def test_a_coarser_or_finer_horizon_decodes_the_same_curve() -> None:
    beast = fit_beast(training_chunks(), units(), BEAST)
    codes = beast.encode("panda", make_chunks("panda", 5, 2))
    sparse, dense = beast.decode("panda", codes, 11), beast.decode("panda", codes, 21)
    smooth = [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(dense[:, ::2, smooth], sparse[..., smooth], atol=1e-6)


def test_ranges_must_be_the_robots() -> None:
    ranges = {robot: np.zeros((2, BEAST.points, len(action))) for robot, action in ACTIONS.items()}
    Beast(BEAST, ranges, units())
    with pytest.raises(ValueError, match=r"ranges of robot 'sawyer' must be f64\[2, 6, 4\], not \[2, 6, 7\]"):
        Beast(BEAST, ranges | {"sawyer": ranges["panda"]}, units())
    del ranges["twin"]
    with pytest.raises(ValueError, match=r"ranges of robot 'twin' must be .* not None"):
        Beast(BEAST, ranges, units())


def test_a_robot_without_chunks_has_no_ranges() -> None:
    chunks = {robot: values for robot, values in training_chunks().items() if robot != "rover"}
    with pytest.raises(ValueError, match="robot 'rover' has no chunk"):
        fit_beast(chunks, units(), BEAST)


@pytest.mark.parametrize(
    "wrong", [{"points": 0}, {"points": 4}, {"degree": -1}, {"gripper_degree": 6}, {"ridge": -1.0}, {"ridge": np.nan}]
)
def test_settings_that_no_spline_has_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"points=|ridge="):
        dataclasses.replace(BEAST, **wrong)
