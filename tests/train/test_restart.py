"""Runs in processes of their own: killed at a random step, and going on over other ranks."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flagscale_vla.config.checkpoints import checkpoint_folder, committed
from flagscale_vla.data.loader import Loader
from flagscale_vla.records import PackedBatch
from flagscale_vla.train.metrics import read_lines
from flagscale_vla.train.pretrain import run
from tests.helpers import run_ranks
from tests.train.settings import SMALL, small_run
from tests.train.weights import assert_same_weights, figures, write_small_shards

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("shards"))


def start_run(output: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "run.py", "--config-name", "train_tiny_action", *SMALL, f"output={output}", *overrides]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def kill_at(process: subprocess.Popen[bytes], output: Path, step: int) -> None:
    """SIGKILL a run once it has made `step` steps."""
    for _ in range(2400):
        lines = read_lines(output / "metrics.jsonl")
        if (lines and lines[-1].step >= step) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_killed_at_a_random_step_and_gone_on_gives_the_same_weights(tmp_path: Path, shards: str) -> None:
    torch.set_num_threads(1)
    overrides = (shards, f"steps={STEPS}", "checkpoint.every=3", "optim.warmup_steps=2", "data.workers=1")
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    step = random.randrange(1, STEPS)
    kill_at(start_run(killed, *overrides), killed, step)
    assert not (killed / "summary.json").exists(), f"the run had ended before it was killed at step {step}"
    run(small_run(killed, *overrides))
    run(small_run(unbroken, *overrides))
    assert figures(killed) == figures(unbroken), f"killed at step {step}"
    assert_same_weights(checkpoint_folder(killed, STEPS), checkpoint_folder(unbroken, STEPS))


def train(rank: int, output: str, overrides: list[str]) -> list[tuple[str, ...]]:
    """Train; the keys of each pack that this rank took, in order."""
    taken: list[tuple[str, ...]] = []
    take = Loader.take

    def noted(loader: Loader, num_packs: int) -> list[PackedBatch]:
        batches = take(loader, num_packs)
        taken.extend(batch.keys for batch in batches)
        return batches

    Loader.take = noted  # type: ignore[method-assign]
    run(small_run(Path(output), *overrides))
    return taken


Took = list[tuple[str, ...]]
CONSTANT = ["global_packs=4", "checkpoint.every=2", "optim.warmup_steps=0", "optim.final_share=1.0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: str) -> tuple[Path, Took]:
    """Four steps without a stop on one rank: the output, and the keys of each pack."""
    output = tmp_path_factory.mktemp("whole")
    return output, run_ranks(train, 1, str(output), [shards, *CONSTANT, "steps=4"])[0]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["parallel.data=2", "parallel.tensor=2"])
def test_going_on_over_other_ranks_reads_the_same_samples_in_the_same_order(
    layout: str, tmp_path: Path, shards: str, whole: tuple[Path, Took]
) -> None:
    unbroken, expected = whole
    shutil.copytree(unbroken / "checkpoints" / "step_00000002", checkpoint_folder(tmp_path, 2))
    shutil.copy(unbroken / "metrics.jsonl", tmp_path)
    one, two = run_ranks(train, 2, str(tmp_path), [shards, *CONSTANT, "steps=4", layout])
    if layout == "parallel.data=2":
        taken = [keys for pair in zip(one, two, strict=True) for keys in pair]
    else:
        assert one == two
        taken = one
    assert len(expected) == 16
    assert taken == expected[8:]
    for (step, *got), (_, *wanted) in zip(figures(tmp_path), figures(unbroken), strict=True):
        assert got == pytest.approx(wanted, rel=1e-4), f"step {step}"
    assert [folder.name for folder in committed(tmp_path)] == ["step_00000002", "step_00000004"]
