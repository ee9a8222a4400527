"""Errors of action tokenizers: what counts, what does not, and in which unit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from flagscale_vla.action.binning import Binning
from flagscale_vla.action.tokenizer import Codes, Floats
from flagscale_vla.action.units import Units
from flagscale_vla.data.actions import Chunks, RobotChunks
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import RobotStatistics, no_statistics
from flagscale_vla.train import tokenizer_errors
from flagscale_vla.train.tokenizer_codes import book_use, least_used
from flagscale_vla.train.tokenizer_errors import entropy_bits, measure, real_errors
from flagscale_vla.train.tokenizer_latency import measure_latency
from tests.samples import PANDA, SAWYER, unit_statistics

HORIZON = 4


class Shifted(Binning):
    """Gives every value back with the same error."""

    def __init__(self, error: float, *robots: Embodiment) -> None:
        statistics = {
            robot.name: RobotStatistics(state=no_statistics(), action=unit_statistics(len(robot.action)))
            for robot in robots
        }
        super().__init__(bins=256, units=Units({robot.name: robot for robot in robots}, statistics))
        self.error = error
        self.given: list[Floats] = []

    def encode(self, robot: str, values: Floats, start: Floats | None = None) -> list[Codes]:
        self.given.append(values)
        return super().encode(robot, values, start)

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int, start: Floats | None = None) -> Floats:
        return self.given[-1] + np.float32(self.error)


def chunks_of(robot: Embodiment, count: int, valid_steps: int = HORIZON) -> RobotChunks:
    generator = np.random.default_rng(len(robot.action))
    return RobotChunks(
        robot=robot.name,
        values=generator.uniform(-1, 1, (count, HORIZON, len(robot.action))).astype(np.float32),
        valid=np.tile(np.arange(HORIZON) < valid_steps, (count, 1)),
        starts=np.zeros((count, len(robot.state)), np.float32),
        keys=tuple(f"train-000000.tar/{robot.name}-{number}/0" for number in range(count)),
    )


def joined(*robots: RobotChunks) -> Chunks:
    by_name = {chunks.robot: chunks for chunks in robots}
    return Chunks(robots=by_name, statistics={}, sound={}, faults=(), num_invalid=0)


def test_means_weigh_values_alike_and_steps_past_the_end_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_errors, "BATCH", 2)
    tokenizer = Shifted(0.25, SAWYER, PANDA)
    chunks = joined(chunks_of(SAWYER, 5, valid_steps=1), chunks_of(PANDA, 3))
    chunks.robots["sawyer"].values[:, 1:] = 99.0
    errors = measure(tokenizer, chunks)
    assert errors.mae == pytest.approx(0.25, abs=1e-6)
    assert errors.robots["sawyer"].measured == 5 * 1 * 4
    assert errors.tokens_per_chunk == (5 * HORIZON * 4 + 3 * HORIZON * 7) / 8
    assert errors.compression == 1.0
    assert errors.robots["panda"].by_dim == pytest.approx([0.25] * 7, abs=1e-6)
    assert errors.robots["panda"].counts.sum() == 3 * HORIZON * 7


def test_real_units() -> None:
    scale = (0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 0.0)
    robot = replace(PANDA, action_scale=scale)
    given, decoded = np.zeros((2, 7), np.float32), np.zeros((2, 7), np.float32)
    decoded[0] = [0.3, 0.4, 0.0, 0.0, 0.0, 0.2, 0.5]
    found = real_errors(robot, given, decoded)
    assert list(found) == ["position_mm", "rotation_deg", "gripper_units"]
    assert found["position_mm"] == pytest.approx([25.0, 0.0])
    assert found["rotation_deg"] == pytest.approx([np.degrees(0.1), 0.0])
    assert found["gripper_units"] == pytest.approx([0.5, 0.0])
    assert list(real_errors(PANDA, given, decoded)) == ["position_units", "rotation_units", "gripper_units"]


def test_arms_bases_and_joints_are_named_apart() -> None:
    names = ("left_j1", "left_j2", "right_dx", "right_dy", "right_dz", "base_vx", "base_vy", "base_wz")
    robot = Embodiment(name="r", state=("x",), action=names, cameras=(), fps=20, action_scale=(1.0,) * 8)
    ones = np.ones((1, 8), np.float32)
    found = {name: float(errors[0]) for name, errors in real_errors(robot, 0 * ones, ones).items()}
    assert found == pytest.approx(
        {
            "left_joints_deg": np.degrees(1.0),
            "right_position_mm": 1000 * np.sqrt(3),
            "base_mm": 1000.0,
            "base_deg": np.degrees(1.0),
        }
    )


def test_entropy_and_use_of_codes() -> None:
    assert entropy_bits(np.array([4, 4, 4, 4, 0])) == 2.0
    assert entropy_bits(np.array([7, 0])) == 0.0
    even, one = book_use("position", 0, np.array([3, 3, 0, 0])), book_use("gripper", 1, np.array([9, 0, 0, 0]))
    assert (even.share_used, even.perplexity) == (0.5, 2.0)
    assert least_used([even, one]) == 0.25
    assert least_used([]) is None


def test_latency_is_measured_on_one_core_and_leaves_the_process_as_it_was() -> None:
    before = os.sched_getaffinity(0)
    latency = measure_latency(Shifted(0.0, SAWYER), joined(chunks_of(SAWYER, 40)))
    assert latency.both == latency.encode + latency.decode > 0
    assert os.sched_getaffinity(0) == before
