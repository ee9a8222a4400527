"""The GPU benchmark's parts on a CPU; its figures need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flagscale_vla.mcore.platform import choose_platform, count_gpus
from flagscale_vla.mcore.topology import Topology
from tools.bench_gpu import Rows, documents, layers_of, pictures, settings

ROOT = Path(__file__).parents[2]
NARROW = [
    "model.language.hidden=64",
    "model.language.intermediate=96",
    "model.language.heads=4",
    "model.language.kv_heads=2",
    "model.language.mrope_sections=[2,3,3]",
    "model.vision.hidden=32",
    "model.vision.intermediate=48",
    "model.vision.heads=4",
    "platform.threads=1",
]


def test_every_layer_is_timed() -> None:
    run = settings("cpu", *NARROW)
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    speeds = dict(layers_of(run.model, platform, tokens=640, steps=1))
    topology.stop()
    assert list(speeds) == ["language", "vision, windows", "vision, whole pictures"]
    assert all(speed.tokens_per_second > 0 for speed in speeds.values())
    assert all(speed.tflops > 0 for speed in speeds.values())


def test_rows_are_full() -> None:
    assert documents(16384).count == 16384
    assert len(documents(16384).bounds[0]) > 10
    assert pictures(640, 112, 0).count == pictures(640, 112, 1).count == 640
    assert len(pictures(640, 112, 0).bounds[0]) > len(pictures(640, 112, 1).bounds[0].unique())


def test_attention_is_counted_by_document() -> None:
    bounds = torch.tensor([[0, 2, 5]], dtype=torch.int32)
    assert Rows(bounds=bounds, causal=False).attention_work(8) == 12 * (4 + 9) * 8
    assert Rows(bounds=bounds, causal=True).attention_work(8) == 6 * (4 + 9) * 8


@pytest.mark.skipif(count_gpus() > 0, reason="for a machine without a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    env = {key: value for key, value in os.environ.items() if key != "RANK"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "tools/bench_gpu.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "bench_gpu" in line]
    assert "no GPU" in line
    assert "Traceback" not in done.stderr
