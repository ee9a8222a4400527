"""Recording: what the shards hold, that nothing depends on processes or interruptions, and that failures count."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.runs import RecordRun, Tier
from flagscale_vla.robots.embodiments import load_embodiments
from flagscale_vla.sim import blocks, record
from flagscale_vla.sim.episodes import chunk_at, record_episode
from flagscale_vla.sim.workers import close_world, open_world
from tests.sim.extras import needs_sim

pytestmark = needs_sim

SETTINGS = RecordRun(
    output="unset",
    tier=Tier.light,
    tasks=["metaworld/reach", "metaworld/drawer-close"],
    episodes=6,
    heldout_episodes=1,
    image_pixels=64,
    horizon=8,
    noise=0.4,
    max_steps=40,
    questions=0,
    question_steps=8,
    processes=2,
    seed=3,
)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    record.run(replace(SETTINGS, output=str(folder)))
    return folder


@pytest.fixture
def here():
    """Blocks recorded in this process."""
    yield
    close_world()


def record_here(settings: RecordRun) -> None:
    folder = Path(settings.output)
    for block in blocks.plan_blocks(settings, settings.tasks):
        if not blocks.is_recorded(folder, block):
            blocks.record_block((settings, block))


def test_webdataset_reads_the_shards(recorded):
    shards = [str(path) for path in sorted(recorded.glob("train-*.tar"))]
    assert len(shards) == 4
    rows = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert len(rows) == json.loads((recorded / "summary.json").read_text())["steps"]
    row = next(row for row in rows if row["__key__"] == "metaworld-reach-000002-0003")
    assert row["front.jpg"].shape == row["wrist.jpg"].shape == (64, 64, 3)
    assert row["state.npy"].shape == (4,)
    assert row["action.npy"].shape == (8, 4)
    assert row["valid.npy"].dtype == bool
    about = row["json"]
    assert (about["task"], about["episode"], about["frame"], about["fps"]) == ("metaworld/reach", 2, 3, 20)
    assert (about["schema_version"], about["robot"], about["phase"]) == (2, "metaworld_sawyer", "reach")
    kinds = [next(iter(segment)) for segment in about["segments"]]
    assert kinds == ["image", "image", "state", "text", "action"]
    assert about["segments"][3] == {"text": about["instruction"], "supervised": False}


def test_chunks_continue_in_the_next_frame(recorded):
    rows = list(webdataset.WebDataset(str(recorded / "train-000000.tar"), shardshuffle=False).decode())
    for row, following in itertools.pairwise(rows):
        if row["json"]["episode"] != following["json"]["episode"]:
            assert row["valid.npy"].sum() == 1
            continue
        assert row["valid.npy"].sum() == min(8, row["json"]["num_frames"] - row["json"]["frame"])
        np.testing.assert_array_equal(row["action.npy"][1:], following["action.npy"][:-1])
        assert np.abs(row["action.npy"]).max() <= 1.0


def test_output_folder_tells_what_is_in_it(recorded):
    summary = json.loads((recorded / "summary.json").read_text())
    assert summary["episodes"] == 12
    assert summary["heldout_episodes"] == 2
    assert summary["episodes_per_task"] == {"metaworld/reach": 6, "metaworld/drawer-close": 6}
    assert {"rejected", "steps", "seconds", "device", "versions", "git"} <= set(summary)
    assert load_embodiments(recorded)["metaworld_sawyer"].state == ("x", "y", "z", "gripper")
    assert "episodes: 6" in (recorded / "config.yaml").read_text()
    report = (recorded / "report.html").read_text()
    assert report.count("data:image/png") == 3
    assert not list(recorded.rglob("*.tmp"))


def test_shards_do_not_depend_on_processes(recorded, tmp_path, here):
    record_here(replace(SETTINGS, output=str(tmp_path), processes=1))
    assert digests(tmp_path) == digests(recorded)


def test_heldout_episodes_are_others(recorded):
    read = {}
    for split in ("train", "heldout"):
        shards = [str(path) for path in sorted(recorded.glob(f"{split}-*.tar"))]
        rows = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        read[split] = {row["front.jpg"] for row in rows}
    assert not read["train"] & read["heldout"]


def test_run_again_does_nothing(recorded):
    before = {path: path.stat().st_mtime_ns for path in recorded.glob("*.tar")}
    summary = (recorded / "summary.json").read_text()
    record.run(replace(SETTINGS, output=str(recorded), processes=1))
    assert before == {path: path.stat().st_mtime_ns for path in recorded.glob("*.tar")}
    assert summary == (recorded / "summary.json").read_text()


def test_other_settings_on_the_same_output_are_refused(recorded):
    with pytest.raises(ConfigError, match=r"noise: saved with 0\.4, asked for 0\.1"):
        record.run(replace(SETTINGS, output=str(recorded), noise=0.1))


def test_killed_run_resumes_to_the_same_shards(recorded, tmp_path, here):
    output = tmp_path / "killed"
    overrides = [f"{key}={value}" for key, value in OVERRIDES.items()]
    command = [sys.executable, "run.py", "--config-name", "record_demo", f"output={output}", *overrides]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if list(output.glob("train-*.tar")):
                break
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    whole = digests(recorded)
    assert digests(output).items() <= whole.items()
    assert not (output / "summary.json").exists()
    record_here(replace(SETTINGS, output=str(output)))
    assert digests(output) == whole


OVERRIDES = {
    "tasks": "[metaworld/reach,metaworld/drawer-close]",
    "episodes": 6,
    "heldout_episodes": 1,
    "image_pixels": 64,
    "horizon": 8,
    "questions": 0,
    "seed": 3,
    "processes": 1,
}


def test_failures_are_counted_and_left_out(tmp_path, here, monkeypatch):
    tries = []

    def every_other(world, **settings):
        tries.append(settings["seed"])
        return record_episode(world, **settings) if len(tries) % 2 == 0 else None

    monkeypatch.setattr(blocks, "record_episode", every_other)
    settings = replace(SETTINGS, output=str(tmp_path), tasks=["metaworld/reach"], episodes=3, heldout_episodes=0)
    block = blocks.plan_blocks(settings, settings.tasks)[0]
    log = blocks.record_block((settings, block))
    assert (len(log.lengths), log.rejected) == (3, 3)
    assert len(set(tries)) == 6
    assert blocks.load_log(tmp_path, block) == log


def test_expert_without_enough_steps_is_an_error(tmp_path, here):
    settings = replace(SETTINGS, output=str(tmp_path), tasks=["metaworld/reach"], max_steps=1)
    with pytest.raises(ValueError, match=r"metaworld/reach.*failed 11 times in a row within 1 steps \(max_steps=1\)"):
        record_here(settings)
    assert not list(tmp_path.glob("*.tar"))


def test_unsolved_episode_is_none(here):
    world = open_world("metaworld/reach", 64)
    assert record_episode(world, seed=0, number=0, noise=0.0, max_steps=2) is None


def test_noise_is_executed_but_not_stored(here):
    world = open_world("metaworld/reach", 64)
    clean = record_episode(world, seed=0, number=0, noise=0.0, max_steps=40)
    noisy = record_episode(world, seed=0, number=0, noise=0.4, max_steps=40)
    np.testing.assert_array_equal(clean.frames[0].action, noisy.frames[0].action)
    assert np.abs(clean.frames[1].state - noisy.frames[1].state).max() > 1e-3


def test_chunk_past_the_end_repeats_the_last_action():
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)
    chunk = chunk_at(actions, 1, 4, "arm")
    np.testing.assert_array_equal(chunk.values, actions[[1, 2, 2, 2]])
    np.testing.assert_array_equal(chunk.valid, [True, True, False, False])


def test_blocks_cover_every_episode_once():
    run = replace(SETTINGS, output="x", episodes=107, heldout_episodes=3)
    plan = blocks.plan_blocks(run, run.tasks)
    for task in run.tasks:
        numbers = [n for block in plan if block.task == task for n in range(block.first, block.first + block.count)]
        assert sorted(numbers) == list(range(110))
    names = [(block.purpose, block.shard) for block in plan]
    assert len(set(names)) == len(names)
