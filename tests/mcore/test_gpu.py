"""The GPU path (NCCL, bfloat16, Transformer Engine) against the CPU's, on the same rows and weights."""

from __future__ import annotations

from functools import partial

import pytest

from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform, count_gpus
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import run_ranks
from tests.model.rows import ACTIONS, IMAGES, TEXT_ONLY, make_row, settings

BFLOAT16_BOUND = 0.03
"""Relative; bfloat16 keeps eight bits, and errors add up over the layers."""


def step(rank: int, device: str) -> list[float]:
    """Mean text loss, mean flow loss and gradient norm of one step."""
    run = settings(f"platform.device={device}", "global_packs=3", "optim.clip=1.0e9")
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    stage = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    engine = Engine(stage, objective, run, topology, platform)
    rows = [make_row(documents, run.data.pack_length) for documents in (TEXT_ONLY, IMAGES, ACTIONS)]
    result = engine.train_step(rows, 1.0)
    sums = result.losses
    return [float(sums.ce) / sums.num_labels, float(sums.flow) / sums.num_action_values, result.grad_norm]


@pytest.mark.gpu
@pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")
def test_a_step_on_a_gpu_agrees_with_one_on_a_cpu() -> None:
    cpu, gpu = run_ranks(step, 1, "cpu")[0], run_ranks(step, 1, "gpu")[0]
    assert gpu == pytest.approx(cpu, rel=BFLOAT16_BOUND)
