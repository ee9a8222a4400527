"""Saving while a run goes on: when a save counts, and what a failing or slow disk costs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flagscale_vla.config.checkpoints import checkpoint_folder, committed, latest, put_aside
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.records import Progress
from flagscale_vla.train.checkpoint import newest_progress
from tests.train.fakes import FakeEngine
from tests.train.settings import small_run
from tests.train.test_checkpoint import save_step, saves


def test_a_slow_save_counts_once_every_byte_is_written_and_read_back(tmp_path: Path) -> None:
    engine = FakeEngine(held=True)
    slow = saves(small_run(tmp_path), engine)
    slow.begin(Progress(step=1))
    slow.poll()
    assert latest(tmp_path) is None
    engine.writing[0].set_result(None)
    slow.poll()
    assert latest(tmp_path) == checkpoint_folder(tmp_path, 1)


def test_a_save_that_fails_is_told_and_counted_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = save_step(small_run(tmp_path, "checkpoint.keep=1"), 1)
    engine = FakeEngine(error=OSError(28, "No space left on device"))
    failing = saves(small_run(tmp_path, "checkpoint.keep=1"), engine)
    failing.begin(Progress(step=2))
    failing.poll()
    assert committed(tmp_path) == [whole]
    assert not checkpoint_folder(tmp_path, 2).exists()
    assert failing.failed == 1
    assert "step_00000002 could not be saved, the run goes on without it: [Errno 28] No space left" in caplog.text
    engine.error = None
    assert failing.last(Progress(step=3)) == latest(tmp_path)


def test_the_last_save_raises_where_it_fails(tmp_path: Path) -> None:
    engine = FakeEngine(error=OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output error"):
        saves(small_run(tmp_path), engine).last(Progress(step=1))


def test_in_the_foreground_a_save_is_whole_before_the_next_step(tmp_path: Path) -> None:
    saves(small_run(tmp_path, "checkpoint.background=false"), FakeEngine()).begin(Progress(step=4))
    assert latest(tmp_path) == checkpoint_folder(tmp_path, 4)


def test_a_run_goes_on_from_the_newest_checkpoint_whose_files_are_sound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run(tmp_path, "checkpoint.keep=3")
    folders = [save_step(run, step) for step in (1, 2, 3)]
    (folders[2] / "metadata.json").write_text("{}")
    with (folders[1] / "config.yaml").open("a") as file:
        file.write("# changed\n")
    with caplog.at_level(logging.ERROR):
        assert newest_progress(run)[0] == folders[0]
    assert "step_00000003/metadata.json was damaged" in caplog.text
    assert "step_00000002/config.yaml was changed after it was saved" in caplog.text
    (folders[0] / "progress.json").write_text("{}")
    with pytest.raises(ConfigError, match="none of its checkpoints is sound"):
        newest_progress(run)


def test_what_is_put_aside_does_not_count_and_is_not_lost(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    for name in ("damaged_step_00000001", "damaged_step_00000001_2"):
        assert put_aside(save_step(run, 1)).name == name
    assert committed(tmp_path) == []
