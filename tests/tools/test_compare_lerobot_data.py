"""The comparison of LeRobot data, as far as it goes without LeRobot."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    """Imports a tool by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


def test_pictures_tell_which_they_are(tool) -> None:
    theirs, ours = tool("compare_lerobot_data_theirs"), tool("compare_lerobot_data")
    pictures = np.stack([[theirs.picture(episode, 5, camera) for camera in (0, 1)] for episode in (0, 2)])
    assert ours.codes(pictures).tolist() == [[5, 4101], [517, 4613]]
    swapped = ours.compare_truth("x", pictures[::-1], {"pictures": pictures}, 0.0)
    assert swapped[0].difference == 4


def test_gaps_are_told(tool) -> None:
    ours = tool("compare_lerobot_data")
    assert ours.gap(np.asarray(["a", "b"]), np.asarray(["a", "c"])) == 0.5
    assert ours.gap(np.zeros(3, np.uint8), np.asarray([0, 250, 0], np.uint8)) == 250
    assert ours.gap(np.zeros(3), np.zeros(4)) == float("inf")


def test_a_python_without_lerobot_is_named(tool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tool("compare_lerobot_data")
    monkeypatch.setattr(sys, "argv", ["compare", "--python", sys.executable, "--first", "no_such_module"])
    with pytest.raises(SystemExit, match=r"LeRobot cannot write a dataset with .*no_such_module"):
        module.main()
