"""Losses and gradients under every parallel layout equal one rank's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing

from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import run_ranks
from tests.model.rows import ACTIONS, IMAGES, TEXT_ONLY, make_row, settings

TOLERANCE = 1e-5
LAYOUTS = {
    "TP2": ["parallel.tensor=2"],
    "TP2+SP": ["parallel.tensor=2", "parallel.sequence=true"],
    "PP2": ["parallel.pipeline=2"],
    "CP2": ["parallel.context=2"],
    "DP2": ["parallel.data=2"],
    "TP2xPP2": ["parallel.tensor=2", "parallel.pipeline=2"],
}
STEPS = {
    "text only": [TEXT_ONLY, TEXT_ONLY[:2]],
    "images without actions": [IMAGES, IMAGES[:1]],
    "actions": [ACTIONS, ACTIONS[:2]],
    "1 row of all": [[*TEXT_ONLY, *IMAGES, *ACTIONS]],
    "4 rows of all": [TEXT_ONLY, IMAGES, ACTIONS, [*IMAGES, *ACTIONS]],
}
"""Rows of one optimizer step. One rank runs 1, 2 or 4 micro-batches; 2 data-parallel ranks run 1 or 2."""

NUM_TENSORS = 35
"""Fewer would mean that a part of the model is not compared. A layer's tensors are stored as one, over all layers."""


def steps(rank: int, overrides: list[str], folder: str) -> dict[str, list[float]]:
    """One step on each set of rows: both losses' sums and the gradient's norm. Leaves the gradients in the folder."""
    # Without momentum the first moment after a step is the gradient itself.
    run = settings("optim.beta1=0.0", "optim.clip=1.0e9", "global_packs=2", *overrides)
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    losses = {}
    for name, rows in STEPS.items():
        if len(rows) < topology.dp_size:
            continue
        stage = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
        engine = Engine(stage, objective, run, topology, platform)
        batches = [make_row(documents, run.data.pack_length, seed) for seed, documents in enumerate(rows)]
        result = engine.train_step(batches[topology.dp_rank :: topology.dp_size], 0.0)
        losses[name] = [float(result.losses.ce), float(result.losses.flow), result.grad_norm]
        engine.save(Path(folder) / name)
    topology.stop()
    return losses


def gradient_errors(rank: int, folders: tuple[str, str]) -> dict[str, dict[str, float]]:
    """Relative difference of every gradient, by set of rows and name."""
    Topology.start(settings().parallel, choose_platform(settings().platform))
    steps = [path.name for path in Path(folders[1]).iterdir()]
    one, many = ({name: load_gradients(Path(folder) / name) for name in steps} for folder in folders)
    return {step: {name: relative(one[step][name], many[step][name]) for name in one[step]} for step in steps}


def load_gradients(folder: Path) -> dict[str, torch.Tensor]:
    tensors = dist_checkpointing.load_plain_tensors(str(folder))
    return {name: value for name, value in tensors.items() if "exp_avg." in name}


def relative(one: torch.Tensor, many: torch.Tensor) -> float:
    return float((one - many).norm() / one.norm().clamp(min=1e-6))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[float]], str]:
    folder = str(tmp_path_factory.mktemp("one"))
    return run_ranks(steps, 1, [], folder)[0], folder


@pytest.mark.ranks
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_equals_one_rank(layout: str, one_rank: tuple[dict, str], tmp_path: Path) -> None:
    expected, folder = one_rank
    overrides = LAYOUTS[layout]
    world_size = settings(*overrides, "global_packs=2").parallel.world_size
    for losses in run_ranks(steps, world_size, overrides, str(tmp_path)):
        assert len(losses) >= len(STEPS) - 1
        assert losses == {name: pytest.approx(expected[name], rel=TOLERANCE) for name in losses}
    errors = run_ranks(gradient_errors, 1, (folder, str(tmp_path)))[0]
    assert all(len(step) >= NUM_TENSORS for step in errors.values())
    wrong = {(step, name): e for step, names in errors.items() for name, e in names.items() if e > TOLERANCE}
    assert wrong == {}
