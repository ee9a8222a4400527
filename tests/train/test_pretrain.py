"""The whole of training on a very small model in one process: begin, go on, stop, be refused."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from flagscale_vla.config.checkpoints import checkpoint_folder, committed, latest
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.mcore.engine import Engine, StepResult
from flagscale_vla.train import pretrain
from flagscale_vla.train.metrics import read_lines
from flagscale_vla.train.pretrain import STOPPED, run
from tests.samples import robot_sample, write_shards
from tests.train.settings import small_run
from tests.train.weights import assert_same_weights, figures, load_tensors, write_small_shards

# A constant rate, so that a run of 2 steps makes the first 2 steps of a run of 4.
STEADY = ("optim.warmup_steps=0", "optim.final_share=1.0", "global_packs=2", "checkpoint.every=2")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("shards"))


def test_two_steps_then_two_more_equal_four_unbroken_bit_for_bit(tmp_path: Path, shards: str) -> None:
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    run(small_run(broken, shards, *STEADY, "steps=2"))
    run(small_run(broken, shards, *STEADY, "steps=4"))
    run(small_run(unbroken, shards, *STEADY, "steps=4"))
    assert [step for step, *_ in figures(broken)] == [1, 2, 3, 4]
    assert figures(broken) == figures(unbroken)
    assert_same_weights(checkpoint_folder(broken, 4), checkpoint_folder(unbroken, 4))
    assert json.loads((broken / "summary.json").read_text())["steps"] == 4
    assert "What the model saw" in (broken / "report.html").read_text()


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, shards: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = small_run(tmp_path, shards, *STEADY, "steps=1")
    run(settings)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level("INFO"):
        run(settings)
    assert "is finished: it has made 1 of 1 steps" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "summary.json").unlink()
    run(settings)
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 1


def test_a_signal_saves_and_stops_and_the_same_command_goes_on(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("steps=3", "checkpoint.every=100")
    settings = small_run(tmp_path / "stopped", shards, *steps)
    take_step = pretrain.take_step

    def signalled(*args):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGTERM)
        return take_step(*args)

    monkeypatch.setattr(pretrain, "take_step", signalled)
    with pytest.raises(SystemExit) as stopped:
        run(settings)
    monkeypatch.undo()
    assert stopped.value.code == STOPPED
    assert "Stopped at step 1 of 3" in (tmp_path / "stopped" / "report.html").read_text()
    run(settings)
    run(small_run(tmp_path / "unbroken", shards, *steps))
    assert figures(tmp_path / "stopped") == figures(tmp_path / "unbroken")
    assert_same_weights(checkpoint_folder(tmp_path / "stopped", 3), checkpoint_folder(tmp_path / "unbroken", 3))
    assert "Stopped" not in (tmp_path / "stopped" / "report.html").read_text()


def test_weights_of_another_run_are_a_start(tmp_path: Path, shards: str) -> None:
    run(small_run(tmp_path / "first", shards, *STEADY, "steps=2"))
    still = [f"optim.{part}.lr=1e-12" for part in ("vision", "merger", "language", "head")]
    init = f"init={tmp_path / 'first'}"
    run(small_run(tmp_path / "next", shards, *STEADY, "steps=1", init, "seed=7", *still))
    first, after = latest(tmp_path / "first"), latest(tmp_path / "next")
    assert first is not None
    assert after is not None
    start, end = load_tensors(first), load_tensors(after)
    weights = [name for name in start if name.startswith(("model.", "language.", "vision.", "flow_"))]
    assert weights
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in weights)


def test_other_settings_in_the_same_output_are_refused(tmp_path: Path, shards: str) -> None:
    run(small_run(tmp_path, shards, *STEADY, "steps=1"))
    with pytest.raises(ConfigError, match="seed: saved with 0, asked for 1"):
        run(small_run(tmp_path, shards, *STEADY, "steps=1", "seed=1"))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = Engine.train_step

    def broken(engine: Engine, batches: list, share: float) -> StepResult:  # type: ignore[type-arg]
        result = train_step(engine, batches, share)
        return replace(result, grad_norm=float("nan"))

    monkeypatch.setattr(Engine, "train_step", broken)
    with pytest.raises(ValueError, match=r"step 1: gradient norm is nan.* Rank 0 had given it: train-\d+\.tar/"):
        run(small_run(tmp_path, shards, *STEADY, "steps=1"))
    assert committed(tmp_path) == []


def test_a_bad_sample_is_left_out_and_counted(tmp_path: Path) -> None:
    good = [robot_sample(seed) for seed in range(5)]
    image = good[0].segments[0]
    cut = replace(image, encoded=image.encoded[: len(image.encoded) // 2])  # type: ignore[union-attr,type-var]
    bad = replace(good[0], key="bad", segments=(cut, *good[0].segments[1:]))
    write_shards(tmp_path / "shards", [*good, bad])
    shards = (f"data.shards={tmp_path / 'shards'}", "data.max_bad_share=0.5", "data.pack_length=1024")
    run(small_run(tmp_path / "out", *shards, *STEADY, "steps=1"))
    (line,) = read_lines(tmp_path / "out" / "metrics.jsonl")
    assert line.quarantined >= 1
    assert "bad" in (tmp_path / "out" / "quarantine" / "rank_0.jsonl").read_text()
    with pytest.raises(ValueError, match=r"data\.max_bad_share=0\.0"):
        run(small_run(tmp_path / "strict", *shards, *STEADY, "steps=1", "data.max_bad_share=0.0"))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output=.*cannot be written"):
        run(small_run(tmp_path / "file" / "out", "data.shards=nowhere"))
    assert not distributed.is_initialized()
