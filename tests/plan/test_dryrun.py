"""A dry run of every training config: what its ranks hold is what Megatron-core would lay out, and adds up."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from torch import distributed

from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.meta import RankBytes, rank_bytes
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.size import count_parameters
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.plan.dryrun import build_stages, check_total, layouts, meta_platform, no_objective, run, runs
from tests.helpers import run_ranks
from tests.model.rows import settings
from tests.settings import CONF, load_training

ROOT = Path(__file__).parents[2]
TRAININGS = sorted(file.stem for file in CONF.glob("train_*.yaml"))
OPEN = ("data.shards=unread", "data.tokenizer=unread", "verb=dryrun")
LAYOUTS = {
    "TP2+SP": ["parallel.tensor=2", "parallel.sequence=true"],
    "PP2": ["parallel.pipeline=2"],
    "PP2xVP2": ["parallel.pipeline=2", "parallel.virtual=2", "global_packs=2"],
    "PP2, uneven": ["parallel.pipeline=2", "parallel.first_layers=1"],
    "DP2xCP2": ["parallel.data=2", "parallel.context=2", "global_packs=2"],
    "DP2, bfloat16": ["parallel.data=2", "global_packs=2", "platform.dtype=bfloat16"],
    "untied PP2xTP2": ["parallel.pipeline=2", "parallel.tensor=2", "model.language.tied=false"],
    "frozen": ["optim.vision.frozen=true"],
}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_config_runs_dry(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        job = load_training(name, *OPEN)
        run(job)
    for parallel in layouts(job.parallel):
        assert f"{parallel.world_size:,} processes" in caplog.text
    assert max(parallel.world_size for parallel in layouts(job.parallel)) >= 1024
    assert not distributed.is_initialized()


def test_it_counts_parameters_and_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(load_training("train_3b_action", *OPEN, f"output={tmp_path / 'out'}"))
    head = 16_984_096
    assert f"{head:,} parameters" in caplog.text
    # Qwen2.5-VL-3B's own count, as its weights have it.
    assert f"{3_754_622_976 + head:,} parameters" in caplog.text
    assert not (tmp_path / "out").exists()


def held(rank: int, overrides: list[str]) -> RankBytes:
    """What this rank's engine really holds."""
    job = settings(*overrides)
    platform = choose_platform(job.platform)
    topology = Topology.start(job.parallel, platform)
    build_chunk = partial(VisionLanguageAction, job.model, job.parallel, platform, topology)
    return rank_bytes(Engine(build_chunk, no_objective, job, topology, platform))


@pytest.mark.ranks
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_foretells_what_a_rank_holds(layout: str) -> None:
    job = settings(*LAYOUTS[layout])
    stages = build_stages(job, job.parallel, meta_platform(job.platform))
    real = run_ranks(held, job.parallel.world_size, LAYOUTS[layout])
    assert {stage.rank: stage.bytes for stage in stages} == {stage.rank: real[stage.rank] for stage in stages}
    for number, each in enumerate(real):
        stage = stages[number * len(stages) // len(real)].bytes
        assert (each.weights, each.gradients) == (stage.weights, stage.gradients)
    check_total(stages, count_parameters(job.model))


def test_optimizer_state_is_shared_by_data_parallel_ranks() -> None:
    job = load_training("train_3b_action", *OPEN)
    few, many = (
        build_stages(job, parallel, meta_platform(job.platform))[0].bytes for parallel in layouts(job.parallel)
    )
    assert many.moments == pytest.approx(few.moments / 8, rel=0.001)
    assert few.main == pytest.approx(4 * (3_771_607_072 - 16_984_096) / 128, rel=0.01)


def test_a_part_that_no_rank_holds_is_found() -> None:
    job = settings()
    stages = build_stages(job, job.parallel, meta_platform(job.platform))
    with pytest.raises(AssertionError, match="the model has"):
        check_total(stages, count_parameters(job.model) | {"head": 1})


def test_a_large_model_on_many_ranks_takes_seconds(caplog: pytest.LogCaptureFixture) -> None:
    degrees = ("parallel.tensor=8", "parallel.pipeline=8", "parallel.data=2")
    with caplog.at_level("INFO"):
        run(load_training("train_3b_action", "model=72b", *degrees, *OPEN))
    assert "1,024 processes: tensor 8 x pipeline 8 x context 1 x data 16" in caplog.text


def test_layers_are_shown_as_runs() -> None:
    assert runs((0, 1, 2, 8, 9)) == "0-2,8-9"
    assert runs((4,)) == "4-4"
    assert runs(()) == "-"


def test_the_program_needs_neither_shards_nor_tokenizer() -> None:
    command = [sys.executable, "run.py", "--config-name", "train_tiny_action", "data=qwen", "action=dryrun"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "1,024 processes" in done.stdout
