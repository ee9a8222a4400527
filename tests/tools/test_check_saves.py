"""Kills while saving, and damage: the short version of what `tools/check_saves.py` does at length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_kill_leaves_an_unloadable_state_and_no_damage_goes_unnoticed() -> None:
    command = [sys.executable, "tools/check_saves.py", "--kills", "12", "--flips", "80", "--mebibytes", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    kills, damage = figures["kills"], figures["damage"]
    assert kills["kills"] == 12
    assert kills["while a save was unfinished"] > 0
    assert kills["saves"] > 0
    assert damage["found"] == damage["named the tensor"] + damage["named the file"] == 80
