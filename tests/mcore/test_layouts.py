"""Losses and gradients under every parallel layout equal one rank's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import Job, run_jobs
from tests.mcore.gradients import whole_gradients
from tests.model.rows import ACTIONS, IMAGES, TEXT_ONLY, Document, make_row, settings

TOLERANCE = 1e-5
NUM_TENSORS = 60
"""Fewer would mean that a part of the model is not compared."""

TP2, TP4 = "parallel.tensor=2", "parallel.tensor=4"
SP = "parallel.sequence=true"
PP2, PP4 = "parallel.pipeline=2", "parallel.pipeline=4"
VPP2 = "parallel.virtual=2"
CP2, CP4 = "parallel.context=2", "parallel.context=4"
DP2, DP4 = "parallel.data=2", "parallel.data=4"
SIX_LAYERS = "model.language.layers=6"
UNTIED = "model.language.tied=false"
LATE = ["parallel.overlap_grad_reduce=false", "parallel.overlap_param_gather=false"]
SELECTIVE = [
    "parallel.language_recompute.granularity=selective",
    "parallel.language_recompute.modules=[core_attn,mlp]",
    "parallel.vision_recompute.granularity=selective",
]
FULL = ["parallel.language_recompute.granularity=full", "parallel.vision_recompute.granularity=full"]
BLOCK = [*FULL, "parallel.language_recompute.method=block", "parallel.vision_recompute.layers=2"]

LAYOUTS = {
    "TP2": [TP2],
    "TP2+SP": [TP2, SP],
    "TP4": [TP4],
    "TP4+SP": [TP4, SP],
    "PP2": [PP2],
    "PP2, untied": [PP2, UNTIED],
    "PP2, 1 layer first": [PP2, "parallel.first_layers=1"],
    "PP2+VPP2": [PP2, VPP2],
    "PP2+VPP2, 2 layers first": [PP2, VPP2, "parallel.first_layers=2", SIX_LAYERS],
    "PP4": [PP4, *BLOCK],
    "PP4, 3 layers first": [PP4, "parallel.first_layers=3", SIX_LAYERS],
    "CP2": [CP2],
    "CP4": [CP4, *SELECTIVE],
    "DP2": [DP2],
    "DP2 without overlap": [DP2, *LATE],
    "DP4": [DP4, *FULL],
    "TP2xPP2": [TP2, PP2],
    "TP2xDP2": [TP2, DP2],
    "TP2+SPxCP2": [TP2, SP, CP2, *SELECTIVE],
    "PP2xCP2": [PP2, CP2],
    "PP2+VPP2xDP2": [PP2, VPP2, DP2],
    "TP2xPP2xDP2": [TP2, PP2, DP2],
    "TP2xCP2xDP2": [TP2, CP2, DP2, *SELECTIVE],
    "TP2xPP2xCP2": [TP2, PP2, CP2, *FULL],
    "TP4+SPxPP2": [TP4, SP, PP2, *FULL],
    "TP2+SPxPP2+VPP2xDP2": [TP2, SP, PP2, VPP2, DP2],
    "TP2+SPxPP2+VPP2xCP2": [TP2, SP, PP2, VPP2, CP2, *SELECTIVE],
    "TP2xPP2xDP2, untied": [TP2, PP2, DP2, UNTIED],
}

Row = list[Document]
MIXED: list[Row] = [TEXT_ONLY, IMAGES, ACTIONS, [TEXT_ONLY[0], IMAGES[1], ACTIONS[0]]]
STEPS: dict[str, list[Row]] = {
    "text only": [TEXT_ONLY, TEXT_ONLY[:2], TEXT_ONLY[1:], TEXT_ONLY[::-1]],
    "images without actions": [IMAGES, IMAGES[:1], IMAGES[1:], IMAGES[::-1]],
    "actions": [ACTIONS, ACTIONS[:2], ACTIONS[1:], ACTIONS[::-1]],
    "all kinds": MIXED,
}
"""Rows of one optimizer step: four, so that every layout has as many micro-batches as its schedule needs."""

# Eight heads and two of keys and values: four tensor ranks share two.
MODEL = ["model.language.heads=8", "model.language.mrope_sections=[1,1,2]", "data.pack_length=128"]


def model_of(overrides: list[str]) -> str:
    """Which model a layout is of: a name for the one rank's results that it is compared to."""
    return ",".join(override for override in overrides if override.startswith("model.")) or "tied"


def steps(rank: int, overrides: list[str], folder: str, layout: str) -> dict[str, Any]:
    """One step on each set of rows: losses, gradient norm and, on rank 0, how far each gradient is from one rank's.

    The one rank itself leaves its gradients in the folder.
    """
    run = settings(*MODEL, "optim.clip=1.0e9", "global_packs=4", *overrides)
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    build = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    engine = Engine(build, objective, run, topology, platform)
    seen = {}
    for name, rows in STEPS.items():
        batches = [make_row(documents, run.data.pack_length, seed) for seed, documents in enumerate(rows)]
        result = engine.train_step(batches[topology.dp_rank :: topology.dp_size], 0.0)
        losses = [float(result.losses.ce), float(result.losses.flow), result.grad_norm]
        gradients = whole_gradients(engine)
        file = Path(folder) / f"{model_of(overrides)} {name}.safetensors"
        if not layout:
            save_file(gradients, file)
        seen[name] = {"losses": losses, "errors": compare(load_file(file), gradients) if rank == 0 else {}}
    topology.stop()
    return seen


def compare(one: dict[str, torch.Tensor], many: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative difference of every gradient by name; infinite where one side has none."""
    names = one.keys() | many.keys()
    return {name: relative(one[name], many[name]) if name in one and name in many else torch.inf for name in names}


def relative(one: torch.Tensor, many: torch.Tensor) -> float:
    return float((one - many).norm() / one.norm().clamp(min=1e-6))


Grid = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """What every rank of every layout saw, and one rank alone for each model; one pool of processes for all."""
    folder = str(tmp_path_factory.mktemp("gradients"))
    models = {model_of(overrides): [x for x in overrides if x.startswith("model.")] for overrides in LAYOUTS.values()}
    jobs = [Job(model, steps, 1, (overrides, folder, "")) for model, overrides in models.items()]
    for layout, overrides in LAYOUTS.items():
        world_size = settings(*MODEL, "global_packs=4", *overrides).parallel.world_size
        jobs.append(Job(layout, steps, world_size, (overrides, folder, layout)))
    return dict(zip([job.name for job in jobs], run_jobs(jobs, timeout_s=600.0), strict=True))


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_equals_one_rank(layout: str, grid: Grid) -> None:
    (expected,) = grid[model_of(LAYOUTS[layout])]
    wrong: dict[str, Any] = {}
    for rank, seen in enumerate(grid[layout]):
        for rows, result in seen.items():
            if result["losses"] != pytest.approx(expected[rows]["losses"], rel=TOLERANCE):
                wrong[f"{layout}, {rows}, rank {rank}: losses and gradient norm"] = result["losses"]
            for name, error in result["errors"].items():
                if not error <= TOLERANCE:
                    wrong[f"{layout}, {rows}: gradient of {name}"] = error
    assert wrong == {}
    assert all(len(grid[layout][0][rows]["errors"]) >= NUM_TENSORS for rows in STEPS)
