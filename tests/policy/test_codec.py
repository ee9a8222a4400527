"""A saved action tokenizer, opened as a codec: there and back is the tokenizer's own answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.action.fast import fit_fast
from flagscale_vla.action.units import Units
from flagscale_vla.policy.client import open_codec
from flagscale_vla.robots.statistics import RobotStatistics
from tests.samples import SAWYER, unit_statistics


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    values = np.random.default_rng(0).uniform(-1, 1, (40, 8, 4)).astype(np.float32).cumsum(axis=1).clip(-1, 1)
    statistics = {SAWYER.name: RobotStatistics(state=unit_statistics(4), action=unit_statistics(4))}
    fit_fast({SAWYER.name: values}, Units({SAWYER.name: SAWYER}, statistics), scale=50, vocab_size=512).save(folder)
    return folder


def test_a_chunk_comes_back_nearly(saved):
    codec = open_codec(saved, horizon=8)
    chunk = np.linspace(-0.5, 0.5, 32, dtype=np.float32).reshape(8, 4)
    found = codec.reconstruct(SAWYER.name, chunk)
    assert (codec.kind, codec.horizon) == ("fast", 8)
    assert (found.shape, found.dtype) == ((8, 4), np.float32)
    np.testing.assert_allclose(found, chunk, atol=0.04)


def test_an_unknown_robot_and_an_empty_folder_are_refused(saved, tmp_path):
    codec = open_codec(saved, horizon=8)
    with pytest.raises(ValueError, match=r"robot='r2d2' was not fitted; known are \['sawyer'\]"):
        codec.reconstruct("r2d2", np.zeros((8, 4), np.float32))
    with pytest.raises(ValueError, match=r"action_tokenizer\.json is missing"):
        open_codec(tmp_path, horizon=8)
