"""Losses and gradients of Qwen2-VL and InternVL under parallel layouts equal one rank's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flagscale_vla.config.model import VisionKind
from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import Job, run_jobs
from tests.mcore.gradients import whole_gradients
from tests.mcore.test_layouts import compare
from tests.model.rows import ACTIONS, FAMILIES, IMAGES, TEXT_ONLY, Document, make_row, settings, tiled

TOLERANCE = 1e-5
TESTED = ("qwen2_vl", "internvl")
NUM_TENSORS = {"qwen2_vl": 65, "internvl": 72}
"""Fewer would mean that a part of the model is not compared."""
LAYOUTS = {
    "one": [],
    "TP2+SPxPP2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"],
    "CP2xDP2": ["parallel.context=2", "parallel.data=2"],
    "PP2+VPP2": ["parallel.pipeline=2", "parallel.virtual=2"],
}
ROWS: list[list[Document]] = [TEXT_ONLY, IMAGES, ACTIONS, [TEXT_ONLY[0], IMAGES[1], ACTIONS[0]]]


def step(rank: int, family: str, layout: str, folder: str) -> dict[str, Any]:
    """Losses and gradient norm of a step, and on rank 0 how far each gradient is from one rank's, which it leaves."""
    run = settings(*FAMILIES[family], "optim.clip=1.0e9", "global_packs=4", *LAYOUTS[layout])
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    build = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    engine = Engine(build, objective, run, topology, platform)
    kind = run.model.vision.kind
    rows = [tiled(row) for row in ROWS] if kind is VisionKind.internvit else ROWS
    batches = [make_row(row, run.data.pack_length, seed, kind) for seed, row in enumerate(rows)]
    result = engine.train_step(batches[topology.dp_rank :: topology.dp_size], 0.0)
    gradients, file = whole_gradients(engine), Path(folder) / f"{family}.safetensors"
    if layout == "one":
        save_file(gradients, file)
    topology.stop()
    losses = [float(result.losses.ce), float(result.losses.flow), result.grad_norm]
    return {"losses": losses, "errors": compare(load_file(file), gradients) if rank == 0 else {}}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every rank saw, by family and layout."""
    folder = str(tmp_path_factory.mktemp("gradients"))
    jobs = []
    for family in TESTED:
        for layout, overrides in LAYOUTS.items():
            world_size = settings(*FAMILIES[family], "global_packs=4", *overrides).parallel.world_size
            jobs.append(Job(f"{family} {layout}", step, world_size, (family, layout, folder)))
    return dict(zip([job.name for job in jobs], run_jobs(jobs, timeout_s=500.0), strict=True))


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("family", TESTED)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "one"])
def test_a_layout_equals_one_rank(family: str, layout: str, seen: dict[str, list[dict[str, Any]]]) -> None:
    (one,), ranks = seen[f"{family} one"], seen[f"{family} {layout}"]
    assert all(rank["losses"] == pytest.approx(one["losses"], rel=TOLERANCE) for rank in ranks)
    errors = ranks[0]["errors"]
    assert len(errors) >= NUM_TENSORS[family]
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}
