"""The benchmark of a training step compares equal work; how fast that is, is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.settings import SMALL

ROOT = Path(__file__).parents[2]


def bench(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/bench_train_step.py", *overrides, "--rows", "1", "--passes", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_losses_agree_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = bench(*SMALL, "data.shards=nowhere", "data.pack_length=2048")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["threads"] == 1
    for mix in ("mixed", "equal"):
        assert figures[f"ratio_{mix}"] > 0
        for loss in ("text_loss", "flow_loss", "grad_norm"):
            assert figures[f"{loss}_{mix}_ours"] == pytest.approx(figures[f"{loss}_{mix}_theirs"], rel=1e-4)
