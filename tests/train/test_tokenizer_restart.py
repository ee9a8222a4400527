"""Fits in processes of their own: killed, signalled, and over two ranks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flagscale_vla.config.checkpoints import checkpoint_folder, committed
from flagscale_vla.train.tokenizer_metrics import read_fit_lines
from flagscale_vla.train.tokenizer_saves import STATE
from tests.train.tokenizers import SMALL, write_action_shards

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_action_shards(tmp_path_factory.mktemp("shards"))


def start(output: Path, shards: Path, *overrides: str) -> subprocess.Popen[bytes]:
    settings = [*SMALL, f"output={output}", f"data.shards={shards}", f"fit.steps={STEPS}", "checkpoint.every=7"]
    command = [sys.executable, "run.py", "--config-name", "tokenizer_omnisat", *settings, "report.every=1", *overrides]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def fit(output: Path, shards: Path, *overrides: str) -> Path:
    """A whole fit; its last state."""
    assert start(output, shards, *overrides).wait(timeout=180) == 0
    return checkpoint_folder(output, STEPS) / STATE


def wait_for(process: subprocess.Popen[bytes], output: Path, step: int) -> None:
    """Until a fit has made `step` steps."""
    for _ in range(60_000):
        lines = read_fit_lines(output / "metrics.jsonl")
        if (lines and lines[-1].step >= step) or process.poll() is not None:
            return
        time.sleep(0.002)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    return fit(tmp_path_factory.mktemp("unbroken"), shards)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_a_random_step_and_gone_on_gives_the_same_codebooks(
    number: signal.Signals, tmp_path: Path, shards: Path, unbroken: Path
) -> None:
    step = random.randrange(1, STEPS - 10)
    process = start(tmp_path, shards)
    wait_for(process, tmp_path, step)
    process.send_signal(number)
    status = process.wait(timeout=60)
    assert not (tmp_path / "summary.json").exists(), f"the fit had ended before {number.name} at step {step}"
    if number is signal.SIGTERM:
        assert status == 128 + signal.SIGTERM
        saved = int(committed(tmp_path)[-1].name.removeprefix("step_"))
        assert saved == read_fit_lines(tmp_path / "metrics.jsonl")[-1].step
    again = fit(tmp_path, shards)
    assert again.read_bytes() == unbroken.read_bytes(), f"{number.name} at step {step}"


@pytest.mark.ranks
@pytest.mark.slow
def test_two_ranks_agree_bit_for_bit_and_with_one_rank_nearly(tmp_path: Path, shards: Path, unbroken: Path) -> None:
    """Each save compares all ranks' states; a fit over two ranks that ends well has had equal codebooks."""
    fit(tmp_path, shards, "parallel.data=2")
    one = read_fit_lines(unbroken.parents[2] / "metrics.jsonl")
    two = read_fit_lines(tmp_path / "metrics.jsonl")
    for first, second in zip(one[:5], two[:5], strict=True):
        assert second.figures == pytest.approx(first.figures, rel=1e-3), f"step {first.step}"
