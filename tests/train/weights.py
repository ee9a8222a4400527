"""Looking into what a run has left: weights, optimizer state and figures."""

from __future__ import annotations

from pathlib import Path

import torch

from flagscale_vla.config.checkpoints import WEIGHTS
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.train.metrics import read_lines
from tests.samples import picture_sample, robot_sample, text_sample, write_shards


def write_small_shards(folder: Path) -> str:
    """Some thirty small samples of every kind, and the override that names their folder."""
    raws = [
        sample for seed in range(10) for sample in (robot_sample(seed), text_sample(seed, 30), picture_sample(seed, 20))
    ]
    write_shards(folder, raws)
    return f"data.shards={folder}"


def load_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint, by name."""
    stored = StoredTensors.open(checkpoint / WEIGHTS)
    return {name: stored.read(name) for name in stored.names}


def assert_same_weights(one: Path, other: Path) -> None:
    """Every weight and every moment of two checkpoints is equal, bit for bit."""
    first, second = load_tensors(one), load_tensors(other)
    assert first.keys() == second.keys()
    assert any("exp_avg_sq" in name for name in first)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def figures(output: Path) -> list[tuple[int, float | None, float | None, float]]:
    """Step, text loss, flow loss and gradient norm of each line of a run."""
    lines = read_lines(output / "metrics.jsonl")
    return [(line.step, line.text_loss, line.flow_loss, line.grad_norm) for line in lines]
