"""What eight ranks saved goes on under other layouts: the same losses, to float tolerance."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import Job, run_jobs
from tests.mcore.test_state import build, step
from tests.model.rows import settings

SAVED = ["parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2"]
LAYOUTS = {
    "TP1xPP1xDP1": [],
    "TP4, KV heads replicated": ["parallel.tensor=4"],
    "PP4": ["parallel.pipeline=4"],
    "DP4": ["parallel.data=4"],
    "PP2xVPP2": ["parallel.pipeline=2", "parallel.virtual=2"],
    "TP2+SPxCP2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.context=2"],
    "as it was saved": SAVED,
}
BEFORE, AFTER = 3, 4
"""Steps before the save, and after it."""
TOLERANCE = 1e-5

Losses = list[list[float]]


def save_and_go_on(rank: int, folder: str) -> Losses:
    """Losses of the steps after a save."""
    engine = build(*SAVED)
    for number in range(BEFORE):
        step(engine, number)
    engine.save(Path(folder))
    losses = [step(engine, BEFORE + number) for number in range(AFTER)]
    engine.topology.stop()
    return losses


def go_on(rank: int, folder: str, overrides: list[str]) -> Losses:
    """Losses of the same steps, made from what was saved."""
    engine = build(*overrides)
    engine.load(Path(folder), with_optimizer=True)
    losses = [step(engine, BEFORE + number) for number in range(AFTER)]
    engine.topology.stop()
    return losses


@pytest.mark.ranks
@pytest.mark.slow
def test_a_checkpoint_of_eight_ranks_goes_on_under_every_layout(tmp_path: Path) -> None:
    jobs = [Job("save", save_and_go_on, 8, (str(tmp_path),))]
    for name, overrides in LAYOUTS.items():
        world_size = settings("global_packs=4", *overrides).parallel.world_size
        jobs.append(Job(name, go_on, world_size, (str(tmp_path), overrides)))
    unbroken, *resumed = run_jobs(jobs, timeout_s=600.0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 8
    for name, results in zip(LAYOUTS, resumed, strict=True):
        for losses in results:
            for got, wanted in zip(losses, unbroken[0], strict=True):
                assert got == pytest.approx(wanted, rel=TOLERANCE), name
    assert resumed[-1] == unbroken, "under the layout it was saved in, a run goes on bit for bit"
