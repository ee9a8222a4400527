"""The life of a checkpoint folder: commit, kill, keep-N, resume, and each way to be refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest

from flagscale_vla.config.checkpoint_files import FORMAT, DamagedError, read_metadata, write_metadata
from flagscale_vla.config.checkpoints import METADATA, checkpoint_folder, committed, find_checkpoint, latest
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.data.feed import Feed
from flagscale_vla.records import Progress
from flagscale_vla.train.changes import check_resumable, read_settings
from flagscale_vla.train.checkpoint import (
    check_samples,
    check_tokenizer,
    find_init,
    prepare_output,
    read_progress,
)
from flagscale_vla.train.saves import Saves, clean
from tests.samples import made_up_index, make_feed, make_recipe
from tests.train.fakes import FakeEngine, FakeTopology
from tests.train.settings import small_run


def save_step(run: TrainRun, step: int, engine: FakeEngine | None = None) -> Path:
    progress = Progress(step=step, packs=2 * step, samples=5 * step, tokens=7 * step)
    return saves(run, engine or FakeEngine()).last(progress)


def saves(run: TrainRun, engine: FakeEngine) -> Saves:
    return Saves(run, FakeTopology(), engine, feed())  # type: ignore[arg-type]


@cache
def feed(num_samples: int = 3) -> Feed:
    return make_feed(made_up_index(range(num_samples)), make_recipe(), 512)


def test_a_save_says_what_it_is_and_gives_progress_back(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    folder = save_step(run, 3)
    assert folder == tmp_path / "checkpoints" / "step_00000003"
    metadata = read_metadata(folder)
    assert metadata.step == 3
    assert metadata.model["language.hidden"] == 64
    assert metadata.parallel["tensor"] == 1
    assert metadata.special_tokens == asdict(feed().recipe.vocabulary)
    small = {"recipe/recipe.json", "recipe/tokenizer.json", "config.yaml", "progress.json"}
    assert set(metadata.digests) == small | {"weights/rank_00000.json"}
    assert {"torch", "megatron-core"} <= metadata.versions.keys()
    assert read_progress(folder, run) == Progress(step=3, packs=6, samples=15, tokens=21)


def test_the_same_step_is_not_saved_twice(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    save_step(run, 1)
    engine = FakeEngine()
    save_step(run, 1, engine)
    assert engine.saved == []


def test_a_save_that_is_cut_short_does_not_count_and_is_cleaned(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    whole = save_step(run, 1)
    with pytest.raises(KeyboardInterrupt):
        save_step(run, 2, FakeEngine(killed=True))
    assert checkpoint_folder(tmp_path, 2).is_dir()
    assert latest(tmp_path) == whole
    clean(tmp_path)
    assert not checkpoint_folder(tmp_path, 2).exists()
    assert save_step(run, 2) == latest(tmp_path)


def test_keep_drops_the_oldest_only_once_a_newer_one_is_whole(tmp_path: Path) -> None:
    run = small_run(tmp_path, "checkpoint.keep=2")
    for step in (1, 2):
        save_step(run, step)
    with pytest.raises(KeyboardInterrupt):
        save_step(run, 3, FakeEngine(killed=True))
    assert len(committed(tmp_path)) == 2
    save_step(run, 3)
    assert [folder.name for folder in committed(tmp_path)] == ["step_00000002", "step_00000003"]
    assert not checkpoint_folder(tmp_path, 1).exists()


def test_a_checkpoint_or_its_run_can_be_named(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    save_step(small_run(tmp_path), 1)
    newest = save_step(small_run(tmp_path), 2)
    assert find_checkpoint(tmp_path) == newest
    assert find_checkpoint(newest) == newest


def test_why_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint=.*nowhere: there is no such folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="neither a checkpoint"):
        find_checkpoint(tmp_path)
    folder = save_step(small_run(tmp_path), 1)
    (folder / METADATA).unlink()
    for path in (tmp_path, folder):
        with pytest.raises(ConfigError, match=r"cut short are there \(step_00000001"):
            find_checkpoint(path)


def test_settings_that_would_make_it_another_run_are_named(tmp_path: Path) -> None:
    folder = save_step(small_run(tmp_path), 1)
    with pytest.raises(ConfigError) as error:
        read_progress(folder, small_run(tmp_path, "seed=5", "global_packs=4", "model.language.layers=4"))
    for line in (
        "seed: saved with 0, asked for 5",
        "global_packs: saved with 1",
        "model.language.layers: saved with 2",
    ):
        assert line in str(error.value)


def test_settings_that_leave_it_the_same_run_may_change(tmp_path: Path) -> None:
    folder = save_step(small_run(tmp_path, "global_packs=4"), 1)
    free = ("parallel.data=2", "parallel.tensor=2", "steps=7", "report.every=3", "checkpoint.keep=9")
    moved = ("data.shards=elsewhere", "data.workers=3", "optim.head.lr=0.1", "platform.matmul=medium")
    assert read_progress(folder, small_run(tmp_path, "global_packs=4", *free, *moved)).step == 1


def test_a_checkpoint_of_another_order_of_samples_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    folder = save_step(run, 1)
    saved = {key: value for key, value in read_settings(folder / "config.yaml").items() if key != "data.era"}
    with pytest.raises(ConfigError, match=r"a version that gave samples in another order.*init=.*step_00000001"):
        check_resumable(saved, run, folder)


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    folder = save_step(run, 1)
    progress = (folder / "progress.json").read_text()
    (folder / "progress.json").write_text('{"step": 9}')
    with pytest.raises(DamagedError, match=r"progress\.json was changed after it was saved"):
        read_progress(folder, run)
    (folder / "progress.json").write_text(progress)
    (folder / "recipe" / "recipe.json").unlink()
    with pytest.raises(DamagedError, match=r"recipe\.json is missing"):
        read_progress(folder, run)


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    folder = save_step(small_run(tmp_path), 1)
    write_metadata(folder, replace(read_metadata(folder), format=FORMAT + 1))
    with pytest.raises(ConfigError, match=f"format {FORMAT + 1} is not the {FORMAT}"):
        read_metadata(folder)


def test_init_needs_the_same_backbone_and_takes_any_head(tmp_path: Path) -> None:
    save_step(small_run(tmp_path / "a"), 1)
    init = f"init={tmp_path / 'a'}"
    assert find_init(small_run(tmp_path / "b", init, "seed=3", "model.name=renamed")).name == "step_00000001"
    assert find_init(small_run(tmp_path / "b", init, "model.flow.width=16")).name == "step_00000001"
    with pytest.raises(ConfigError, match=r"model\.vision\.layers: saved with \d, asked for 3"):
        find_init(small_run(tmp_path / "b", init, "model.vision.layers=3"))
    with pytest.raises(ConfigError, match=r"init=.*no such folder"):
        find_init(small_run(tmp_path / "b", "init=nowhere"))


def test_init_needs_the_same_tokenizer(tmp_path: Path) -> None:
    folder = save_step(small_run(tmp_path / "a"), 1)
    run = small_run(tmp_path / "b", f"init={folder}")
    check_tokenizer(folder, run, feed())
    other = replace(feed(), recipe=make_recipe(vocab=280))
    with pytest.raises(
        ConfigError, match=r"data\.tokenizer=fit: init=.* This would pass: data\.tokenizer=.*tokenizer\.json"
    ):
        check_tokenizer(folder, run, other)


def test_a_run_does_not_go_on_with_other_samples(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    folder = save_step(run, 1)
    check_samples(folder, run, feed())
    with pytest.raises(ConfigError, match=r"data\.shards=.*holds other samples"):
        check_samples(folder, run, feed(num_samples=4))


def test_an_output_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output=.*cannot be written to \(Not a directory\)"):
        prepare_output(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match="cannot be written to"):
        prepare_output(Path("/proc/no-such-run"))
