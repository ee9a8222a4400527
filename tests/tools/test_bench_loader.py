"""The benchmarks of pictures and of the loader run and tell what they say; how fast things are, is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def bench(name: str, *options: str) -> dict[str, float]:
    command = [sys.executable, f"tools/{name}.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


@pytest.mark.slow
def test_pictures_are_measured_beside_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    figures = bench("bench_images", "--pictures", "2", "--rounds", "3")
    assert 10_000 < figures["jpeg_bytes"] < 200_000
    assert figures["ratio_pillow_224"] == 1.0
    assert figures["rate_turbo_224"] > 0
    assert figures["mean_turbo_224"] < 0.01
    assert 0 < figures["mean_turbo_128"] < 1.5


@pytest.mark.slow
def test_loaders_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = ("--frames", "8", "--samples", "6", "--rounds", "1", "--starts", "2")
    figures = bench("bench_loader", "--workers", "0", "1", *few)
    for side in ("ours", "decoding", "kept", "webdataset"):
        assert figures[f"rate_{side}_0"] > 0
        assert figures[f"rate_{side}_1"] > 0
    assert figures["ratio_ours_0"] == 1.0
