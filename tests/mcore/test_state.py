"""Weights and optimizer state of an engine, saved and loaded: bit for bit, in either precision, with frozen parts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import run_ranks
from tests.model.rows import ACTIONS, IMAGES, TEXT_ONLY, make_row, settings

ROWS = [TEXT_ONLY, IMAGES, ACTIONS, [*IMAGES, *ACTIONS]]


def build(*overrides: str) -> Engine:
    """An engine in the process group that is to be made."""
    run = settings("global_packs=4", *overrides)
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    stage = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    return Engine(stage, objective, run, topology, platform)


def step(engine: Engine, number: int) -> list[float]:
    """One step on rows of its own: both losses and the gradient's norm."""
    topology = engine.topology
    batches = [make_row(documents, 256, 4 * number + place) for place, documents in enumerate(ROWS)]
    result = engine.train_step(batches[topology.dp_rank :: topology.dp_size], 1.0)
    return [float(result.losses.ce), float(result.losses.flow), result.grad_norm]


def round_trip(rank: int, folder: str, overrides: list[str]) -> tuple[list[float], list[float], list[float]]:
    """Two steps, a save, a third step; the third step again after loading into the same engine and into a new one."""
    engine = build(*overrides)
    for number in range(2):
        step(engine, number)
    engine.save(Path(folder) / "awaited")
    engine.start_save(Path(folder) / "background").result()
    third = step(engine, 2)
    engine.load(Path(folder) / "awaited", with_optimizer=True)
    again = step(engine, 2)
    engine.topology.stop()
    other = build(*overrides, "seed=5")
    other.load(Path(folder) / "background", with_optimizer=True)
    return third, again, step(other, 2)


@pytest.mark.parametrize(
    "overrides",
    [
        ["platform.dtype=float32"],
        ["platform.dtype=bfloat16"],
        ["optim.vision.frozen=true", "optim.language.frozen=true"],
        ["platform.dtype=bfloat16", "optim.merger.frozen=true"],
    ],
    ids=["float32", "bfloat16", "frozen", "bfloat16, frozen"],
)
def test_a_step_after_loading_equals_the_step_after_saving_bit_for_bit(tmp_path: Path, overrides: list[str]) -> None:
    third, again, elsewhere = run_ranks(round_trip, 1, str(tmp_path), overrides)[0]
    assert third == again == elsewhere
    one, other = (StoredTensors.open(tmp_path / name) for name in ("awaited", "background"))
    assert one.names == other.names
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.names)
    assert any(name.startswith("main/") for name in one.names) == ("platform.dtype=bfloat16" in overrides)
    assert not any(name.startswith("exp_avg/vision.patch") for name in one.names) or "frozen" not in overrides[0]


def precisions(rank: int, folder: str) -> tuple[float, float]:
    """Largest difference of a bfloat16 engine's main weights to the float32 ones it took, before and after a save."""
    engine = build("platform.dtype=float32")
    engine.save(Path(folder) / "float32")
    engine.topology.stop()
    half = build("platform.dtype=bfloat16", "seed=5")
    half.load(Path(folder) / "float32", with_optimizer=False)
    half.save(Path(folder) / "bfloat16")
    exact, rounded = (StoredTensors.open(Path(folder) / name) for name in ("float32", "bfloat16"))
    weights = exact.weights
    main = [exact.read(name) - rounded.read(f"main/{name}") for name in weights if f"main/{name}" in rounded]
    assert len(main) > 30
    return max(float(part.abs().max()) for part in main), max(
        float((exact.read(name) - rounded.read(name).float()).abs().max()) for name in weights
    )


def test_main_weights_of_a_bfloat16_run_keep_the_float32_ones_that_it_begins_with(tmp_path: Path) -> None:
    main, rounded = run_ranks(precisions, 1, str(tmp_path))[0]
    assert main == 0.0
    assert 0.0 < rounded < 0.02
