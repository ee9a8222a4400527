"""Replays: what a perfect codec keeps, what a useless one loses, and that errors are apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.replay import ReplayRun
from flagscale_vla.config.runs import Tier
from flagscale_vla.sim import replay as replay_job
from flagscale_vla.sim.episodes_log import EpisodesLog
from flagscale_vla.sim.playback import expert_actions, fill_up, play_chunks, play_codec, play_raw, through_codec
from flagscale_vla.sim.replay import fingerprint, replay, run
from flagscale_vla.sim.replay_scores import replay_figures
from flagscale_vla.sim.rollout import Attempt, Controller, Outcome, Rules, Trial, play_trial
from flagscale_vla.sim.scores import score
from flagscale_vla.sim.workers import close_world, open_world
from tests.sim.clients import FixedCodec, open_exact_codec, open_still_codec, open_unfitted_codec
from tests.sim.extras import needs_sim

TASKS = ["metaworld/drawer-close", "metaworld/reach"]
SETTINGS = ReplayRun(
    output="unset",
    tokenizer="a fake",
    tier=Tier.light,
    tasks=TASKS,
    episodes=2,
    horizon=16,
    linger=10,
    chunks=True,
    max_steps=0,
    confidence=0.95,
    processes=1,
    seed=0,
)
RULES = Rules(seed=0, max_steps=0, execute_steps=16, image_pixels=0)


@pytest.fixture
def here(monkeypatch):
    """Whatever a job would do in other processes is done in this one."""
    monkeypatch.setattr(replay_job, "map_jobs", lambda work, jobs, processes, *, draw: map(work, jobs))
    monkeypatch.setattr(replay_job, "_codecs", [])
    yield
    close_world()


def test_the_last_chunk_is_filled_up_as_in_training_and_cut_again():
    actions = np.arange(20, dtype=np.float32).reshape(5, 4)
    chunks = fill_up(actions, 3)
    assert chunks.shape == (2, 3, 4)
    np.testing.assert_array_equal(chunks[1], actions[[3, 4, 4]])
    codec = FixedCodec(horizon=3, gain=2.0)
    states = iter(np.arange(6, dtype=np.float32).reshape(2, 3))
    found = list(through_codec(codec, "arm", actions, lambda: next(states)))
    np.testing.assert_array_equal(np.concatenate(found), actions * [2, 2, 2, 1])
    np.testing.assert_array_equal(codec.starts, [[0, 1, 2], [3, 4, 5]])
    assert [seen.shape for seen in codec.seen] == [(3, 4)] * 2


@needs_sim
@pytest.mark.parametrize("task", TASKS)
def test_an_exact_codec_does_what_the_expert_does(here, task):
    world = open_world(task, 0)
    world.reset(7)
    steps = len(expert_actions(world, world.max_steps))
    for play in (
        play_raw(expert_actions, 3),
        play_codec(FixedCodec(), expert_actions, 3),
        play_chunks(FixedCodec(horizon=6)),
    ):
        world.reset(7)
        assert play(world, 7, world.max_steps) == (True, steps)


@needs_sim
def test_by_chunks_the_expert_answers_to_where_the_codec_has_led(here):
    world = open_world("metaworld/reach", 0)
    codec = FixedCodec(horizon=4, gain=0.7)
    world.reset(5)
    assert not play_codec(codec, expert_actions, 0)(world, 5, world.max_steps)[0]
    world.reset(5)
    codec.seen.clear()
    solved, steps = play_chunks(codec)(world, 5, world.max_steps)
    assert solved
    assert len(codec.seen) == -(-steps // 4)
    # What the expert asks for next is what it would ask for in the place where the last chunk really ended.
    world.reset(5)
    for action in codec.seen[0] * [0.7, 0.7, 0.7, 1.0]:
        world.step(action)
    np.testing.assert_allclose(world.expert_action(), codec.seen[1][0], atol=1e-5)


@needs_sim
def test_steps_end_at_the_limit(here):
    world = open_world("metaworld/reach", 0)
    for play in (
        play_raw(expert_actions, 0),
        play_codec(FixedCodec(gain=0.0), expert_actions, 0),
        play_chunks(FixedCodec(horizon=4, gain=0.0)),
    ):
        world.reset(5)
        assert play(world, 5, 6) == (False, 6)


@needs_sim
def test_an_unknown_robot_is_an_error_not_a_failure(here):
    trial = Trial(task="metaworld/reach", number=0, controller=Controller.codec, film=None)
    found = play_trial(trial, RULES, play_codec(open_unfitted_codec(), expert_actions, 0))
    assert found.outcome is Outcome.error
    assert "robot='metaworld_sawyer' was not fitted" in found.message


@needs_sim
def test_a_hand_that_comes_late_is_waited_for(here):
    world = open_world("metaworld/drawer-close", 0)
    world.reset(7)
    expert = expert_actions(world, world.max_steps)
    for linger, solved in ((0, False), (10, True)):
        world.reset(7)
        found, steps = play_codec(FixedCodec(gain=0.8), expert_actions, linger)(world, 7, world.max_steps)
        assert found is solved
        assert (steps > len(expert)) is solved


def attempts_of(controller: Controller, outcomes: str, task: str = "metaworld/reach") -> list[Attempt]:
    words = {"s": Outcome.success, "f": Outcome.failure, "e": Outcome.error}
    return [
        Attempt(
            trial=Trial(task=task, number=number, controller=controller, film=None),
            outcome=words[letter],
            steps=7 + (letter == "s" and controller is Controller.codec and number == 0),
            seconds=0.5,
            instruction="go",
            message="",
        )
        for number, letter in enumerate(outcomes)
    ]


def test_only_what_the_raw_replay_solved_can_be_kept():
    attempts = [
        *attempts_of(Controller.raw, "ssssf"),
        *attempts_of(Controller.codec, "ssfes"),
        *attempts_of(Controller.chunks, "sssff"),
        *attempts_of(Controller.raw, "ff", "robosuite/Lift/Panda"),
        *attempts_of(Controller.codec, "fs", "robosuite/Lift/Panda"),
    ]
    figures = replay_figures(score(attempts, 0.95))
    assert figures["replay_success"] == pytest.approx(2 / 3)
    assert (figures["raw_successes"], figures["kept"], figures["lost"]) == (4, 2, 1)
    assert figures["late"] == 1
    assert (figures["gained"], figures["errors"], figures["episodes"]) == (2, 1, 7)
    assert figures["chunks_success"] == pytest.approx(3 / 4)
    lift = figures["per_task"]["robosuite/Lift/Panda"]
    assert (lift["replay_success"], lift["raw_successes"], lift["gained"]) == (None, 0, 1)
    assert figures["per_simulator"]["metaworld"]["kept"] == 2


@needs_sim
def test_a_perfect_codec_keeps_all_and_a_still_hand_nothing(tmp_path, here):
    for opener, kept in ((open_exact_codec, 1.0), (open_still_codec, 0.0)):
        output = tmp_path / opener.__name__
        replay_job._codecs.clear()
        replay(replace(SETTINGS, output=str(output)), opener, kind="fixed", identity=opener.__name__)
        summary = json.loads((output / "summary.json").read_text())
        assert (summary["raw_successes"], summary["episodes"], summary["errors"]) == (4, 4, 0)
        assert summary["replay_success"] == summary["chunks_success"] == kept
        assert set(summary["per_task"]) == set(TASKS)
        assert {"device", "versions", "git", "kind", "horizon"} <= set(summary)
        report = (output / "report.html").read_text()
        assert f"fixed keeps {kept:.3f}" in report
        assert report.count("data:image/png") == 1
        assert "horizon: 16" in (output / "config.yaml").read_text()


@needs_sim
def test_a_replay_that_was_cut_short_goes_on(tmp_path, here):
    settings = replace(SETTINGS, output=str(tmp_path), tasks=["metaworld/reach"])
    replay(settings, open_exact_codec, kind="fixed", identity="exact")
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3
    raw = [line for line in lines if '"raw"' in line]
    changed = [line.replace('"success"', '"failure"') for line in raw]
    (tmp_path / "episodes.jsonl").write_text("\n".join([lines[0], *changed, '{"controller": "ra']))
    replay(settings, open_exact_codec, kind="fixed", identity="exact")
    # The two that were done are not done again, though they are not what they would be now.
    assert json.loads((tmp_path / "summary.json").read_text())["raw_successes"] == 0
    replay(settings, open_exact_codec, kind="fixed", identity="another")
    assert json.loads((tmp_path / "summary.json").read_text())["raw_successes"] == 2


@needs_sim
def test_the_third_way_can_be_left_out(tmp_path, here):
    settings = replace(SETTINGS, output=str(tmp_path), tasks=["metaworld/reach"], chunks=False)
    replay(settings, open_exact_codec, kind="fixed", identity="exact")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["replay_success"], summary["chunks_success"]) == (1.0, None)
    assert "By chunks" not in (tmp_path / "report.html").read_text()


@needs_sim
def test_all_errors_end_in_one_message(tmp_path, here):
    settings = replace(SETTINGS, output=str(tmp_path), tasks=["metaworld/reach"])
    with pytest.raises(ValueError, match=r"all 4 replays through the codec ended in an error.*was not fitted"):
        replay(settings, open_unfitted_codec, kind="fixed", identity="unfitted")
    assert "was not fitted" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["replay_success"] is None
    assert EpisodesLog(tmp_path, "other").attempts == []


@needs_sim
@pytest.mark.slow
def test_results_do_not_depend_on_processes(tmp_path):
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        settings = replace(SETTINGS, output=str(output), processes=processes)
        replay(settings, open_still_codec, kind="fixed", identity="still")
        summary = json.loads((output / "summary.json").read_text())
        found.append((summary["per_task"], summary["replay_success"]))
    assert found[0] == found[1]


def test_a_folder_without_a_tokenizer_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"action_tokenizer\.json is missing"):
        run(replace(SETTINGS, output=str(tmp_path / "out"), tokenizer=str(tmp_path)))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_told_by_all_its_files(tmp_path: Path):
    (tmp_path / "a.json").write_text("{}")
    first = fingerprint(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"1")
    second = fingerprint(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"2")
    assert len({first, second, fingerprint(tmp_path)}) == 3
