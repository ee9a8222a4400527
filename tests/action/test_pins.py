"""Chunks that begin at the robot's state: joints asked for where they are to be, beside an arm that asks for steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.action.fitter import Fitter
from flagscale_vla.action.groups import evaluation, fitting
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.pins import pinned_parts, pins_in_words
from flagscale_vla.action.spline import Spline
from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.tokenizer import ChunkError, Floats
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.robots.layout import Kind
from tests.action.chunks import HORIZON, make_chunks, statistics_of, training_chunks
from tests.action.codec import nothing, small
from tests.action.targets import ARM, JOINTS, KNOWN, STEPPER, make_targets, pinned_codec


@pytest.fixture(scope="module")
def codec() -> OmniSat:
    return pinned_codec()


def test_parts_that_the_state_names_are_pinned() -> None:
    assert [part.kind for part in pinned_parts(ARM)] == [Kind.joints]
    assert pinned_parts(STEPPER) == ()
    # A gripper jumps, and a joint that the state lacks leaves its arm free.
    assert pinned_parts(dataclasses.replace(ARM, state=("gripper", *JOINTS[:5]))) == ()
    assert pins_in_words(ARM) == "begins at the state: joints"


def test_a_chunk_begins_at_the_state_to_the_bit(codec: OmniSat) -> None:
    targets, states = make_targets(100, 1)
    targets, states = (np.clip(each, -1.9, 1.9) for each in (targets, states))
    codes = codec.encode("arm", targets, states)
    decoded = codec.decode("arm", codes, HORIZON, states)
    np.testing.assert_array_equal(decoded[:, 0, :6], states[:, 1:])
    assert np.abs(decoded - targets)[..., :6].mean() < 0.05
    # The same codes go on from wherever the robot is.
    moved = codec.decode("arm", codes, HORIZON, states * 0.5)
    np.testing.assert_allclose(moved - moved[:, :1], decoded - decoded[:, :1], atol=0.2)
    np.testing.assert_array_equal(moved[:, 0, :6], states[:, 1:] * np.float32(0.5))


def test_what_counts_from_the_state_is_known_better_than_what_does_not(codec: OmniSat) -> None:
    targets, states = make_targets(200, 2)
    free = OmniSat(dataclasses.replace(codec.config, pin_start=False), codec.coders, codec.units)
    pinned_error, free_error = (
        np.abs(each.decode("arm", each.encode("arm", targets, states), HORIZON, states) - targets)[..., :6].mean()
        for each in (codec, free)
    )
    assert pinned_error < free_error / 3


def test_a_state_out_of_range_is_brought_into_it(codec: OmniSat) -> None:
    targets, states = make_targets(3, 1)
    states[:] = 9.0
    decoded = codec.decode("arm", codec.encode("arm", targets, states), HORIZON, states)
    np.testing.assert_array_equal(decoded[:, 0, :6], np.broadcast_to(codec.units.limits("arm")[1][:6], (3, 6)))


def test_steps_are_as_ever(codec: OmniSat) -> None:
    chunks = make_chunks("panda", 20, 5)
    free = OmniSat(dataclasses.replace(codec.config, pin_start=False), codec.coders, codec.units)
    for start in (None, np.zeros((20, 1), np.float32)):
        codes = codec.encode("stepper", chunks, start)
        np.testing.assert_array_equal(codes, free.encode("stepper", chunks))
        decoded = codec.decode("stepper", codes, HORIZON, start)
        np.testing.assert_array_equal(decoded, free.decode("stepper", codes, HORIZON))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (None, r"robot 'arm': its chunks begin at its state \(codec.pin_start\), and none was given"),
        (np.zeros((2, 6), np.float32), r"robot 'arm': a start of shape \[2, 6\] must be f32\[2, 7\], of \['gripper'"),
        (np.full((2, 7), np.nan, np.float32), r"robot 'arm': chunk 0 begins at gripper=nan: not finite"),
    ],
)
def test_a_start_that_is_none(codec: OmniSat, start: Floats | None, words: str) -> None:
    targets, states = make_targets(2, 3)
    with pytest.raises(ChunkError, match=words):
        codec.encode("arm", targets, start)
    with pytest.raises(ChunkError, match=words):
        codec.decode("arm", codec.encode("arm", targets, states), HORIZON, start)


def test_it_is_saved_and_read(codec: OmniSat, tmp_path: Path) -> None:
    targets, states = make_targets(5, 4)
    codec.save(tmp_path)
    loaded = load_action_tokenizer(tmp_path)
    codes = loaded.encode("arm", targets, states)
    np.testing.assert_array_equal(codes, codec.encode("arm", targets, states))
    with pytest.raises(ChunkError, match="robot 'arm'"):
        loaded.encode("arm", targets)


def test_where_nothing_can_be_pinned_it_is_refused() -> None:
    statistics = {"stepper": statistics_of(training_chunks()["panda"])}
    with pytest.raises(ConfigError, match=r"codec.pin_start=True: no robot's state has .* robot 'stepper' has \['dx'"):
        Fitter(small(pin_start=True), KNOWN, statistics, HORIZON, 0, nothing)


@pytest.mark.parametrize(("horizon", "points", "degree"), [(16, 8, 3), (5, 8, 3), (1, 8, 3), (16, 16, 0), (40, 8, 2)])
def test_a_pinned_curve_is_the_splines(horizon: int, points: int, degree: int) -> None:
    operator = fitting(horizon, points, degree, 1e-6, pinned=True)
    assert not operator[0].any()
    assert not evaluation(horizon, points, degree, pinned=True)[0].any()
    if horizon >= points:
        values = np.random.default_rng(0).normal(size=(horizon, 2))
        spline = Spline(horizon=horizon, points=points, degree=degree, ridge=1e-6)
        expected = spline.fit(values, start=np.zeros(2))
        np.testing.assert_allclose(operator.numpy() @ values, expected, atol=1e-4)
