"""Evaluation: outcomes are told apart, the scale stands beside them, and the figures are what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.parallel import Device, Dtype, Fp8, MatmulPrecision, PlatformConfig
from flagscale_vla.config.runs import EvalRun
from flagscale_vla.data.shards import ShardWriter
from flagscale_vla.records import Action, Image, State, Text
from flagscale_vla.sim.episodes import encode_jpeg
from flagscale_vla.sim.episodes_log import EpisodesLog
from flagscale_vla.sim.evaluate import evaluate
from flagscale_vla.sim.intervals import wilson
from flagscale_vla.sim.openloop import OpenLoop, measure_open_loop
from flagscale_vla.sim.rollout import (
    Attempt,
    Controller,
    Outcome,
    Rules,
    Trial,
    attempt,
    expert_plan,
    policy_plan,
    roll_out,
)
from flagscale_vla.sim.workers import close_world, open_world
from tests.sim.clients import FixedClient, open_broken, open_exploding, open_pusher
from tests.sim.extras import needs_sim

SETTINGS = EvalRun(
    output="unset",
    checkpoint="a fake",
    shards="unset",
    tasks=["metaworld/drawer-close", "metaworld/reach"],
    episodes=2,
    max_steps=30,
    execute_steps=4,
    denoise_steps=1,
    temperature=0.0,
    image_pixels=64,
    confidence=0.95,
    videos=1,
    processes=1,
    seed=0,
    platform=PlatformConfig(
        device=Device.cpu, dtype=Dtype.auto, fp8=Fp8.none, matmul=MatmulPrecision.highest, threads=1
    ),
)
RULES = Rules(seed=0, max_steps=30, execute_steps=4, image_pixels=64)


@pytest.fixture
def here():
    yield
    close_world()


@pytest.fixture(scope="module")
def heldout(tmp_path_factory) -> Path:
    """Ten frames; in each the expert moves by 0.6 along x, twice, and then the episode ends."""
    folder = tmp_path_factory.mktemp("heldout")
    picture = encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    action = Action(
        values=np.tile(np.array([0.6, 0.0, 0.0, 0.5], np.float32), (8, 1)),
        valid=np.arange(8) < 2,
        robot="metaworld_sawyer",
    )
    with ShardWriter(folder, "heldout", 10**6) as writer:
        for frame in range(10):
            segments = [
                Image(name="front", encoded=picture),
                State(values=np.zeros(4, np.float32), robot="metaworld_sawyer"),
                Text(text="go", supervised=False),
                action,
            ]
            writer.write(f"frame-{frame}", segments, {})
    return folder


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_against_published_numbers(successes, trials, low, high):
    found = wilson(successes, trials, 0.95)
    np.testing.assert_allclose(found, (low, high), atol=1e-4)


def test_open_loop_error_is_over_valid_steps_in_standard_deviations(heldout):
    # Normalised target (1, 0, 0, 0); the mean action is off by 1/4 on average, an action of x=0.35 by half of that.
    exact = measure_open_loop(FixedClient([0.6, 0.0, 0.0, 0.5]), heldout, seed=0)
    mean = measure_open_loop(FixedClient([0.1, 0.0, 0.0, 0.5]), heldout, seed=0)
    half = measure_open_loop(FixedClient([0.35, 0.0, 0.0, 0.5]), heldout, seed=0)
    assert exact.frames == 10
    assert exact.mean_action_error == pytest.approx(0.25)
    assert (exact.ratio, mean.ratio, half.ratio) == pytest.approx((0.0, 1.0, 0.5), abs=1e-6)


@needs_sim
def test_expert_through_the_rollout_succeeds(here):
    for number in range(3):
        trial = Trial(task="metaworld/drawer-close", number=number, controller=Controller.expert, film=None)
        found = attempt(trial, RULES, expert_plan)
        assert found.outcome is Outcome.success
        assert 5 < found.steps <= 30


@needs_sim
def test_chunks_are_cut_clipped_and_replanned(here):
    client = FixedClient([9.0, 0.0, 0.0, 0.0], steps=8)
    world = open_world("metaworld/reach", 64)
    world.reset(1)
    _, steps = roll_out(world, policy_plan(client, 3), seed=5, max_steps=10, film=None)
    assert steps == 10
    assert client.seen == [(1, 5), (1, 8), (1, 11), (1, 14)]
    straight = FixedClient([1.0, 0.0, 0.0, 0.0], steps=8)
    end = world.observe().state
    world.reset(1)
    roll_out(world, policy_plan(straight, 3), seed=5, max_steps=10, film=None)
    np.testing.assert_array_equal(end, world.observe().state)


@needs_sim
@pytest.mark.parametrize(
    ("client", "message"),
    [
        (FixedClient([np.nan, 0, 0, 0]), "4 finite numbers"),
        (FixedClient([0, 0, 0, 0, 0, 0, 0]), "4 finite numbers"),
        (FixedClient([0, 0, 0, 0], steps=0), "chunk of no steps"),
    ],
)
def test_a_bad_answer_is_an_error_not_a_failure(here, client, message):
    trial = Trial(task="metaworld/reach", number=0, controller=Controller.policy, film=None)
    found = attempt(trial, RULES, policy_plan(client, 4))
    assert found.outcome is Outcome.error
    assert message in found.message


@needs_sim
def test_evaluation_tells_success_failure_and_error_apart(tmp_path, heldout):
    run = replace(SETTINGS, output=str(tmp_path), shards=str(heldout))
    evaluate(run, open_exploding, identity="exploding")
    summary = json.loads((tmp_path / "summary.json").read_text())
    drawer, reach = summary["per_task"]["metaworld/drawer-close"], summary["per_task"]["metaworld/reach"]
    assert (drawer["successes"], drawer["failures"], drawer["errors"]) == (0, 0, 2)
    assert drawer["success_mean"] is None
    assert (reach["successes"], reach["failures"], reach["errors"]) == (0, 2, 0)
    assert (summary["errors"], summary["episodes"], summary["success_mean"]) == (2, 4, 0.0)
    assert (summary["expert_success_mean"], summary["floor_success_mean"]) == (1.0, 0.0)
    assert summary["success_high"] == pytest.approx(wilson(0, 2, 0.95)[1])
    assert summary["open_loop_error_ratio"] == pytest.approx(0.45 / 0.25, rel=0.5)
    assert {"device", "versions", "git", "success_low"} <= set(summary)
    assert "the weights are on fire" in (tmp_path / "report.html").read_text()
    assert "execute_steps: 4" in (tmp_path / "config.yaml").read_text()


@needs_sim
def test_videos_show_both_cameras(tmp_path, heldout):
    run = replace(SETTINGS, output=str(tmp_path), shards=str(heldout), tasks=["metaworld/reach"], episodes=1)
    evaluate(run, open_pusher, identity="pusher")
    video = tmp_path / "videos" / "metaworld-reach-000.mp4"
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frames[0].shape == (256 + 32, 512, 3)
    assert len(frames) >= 30
    assert not np.array_equal(frames[0][:256, :256], frames[0][:256, 256:])
    assert video.with_suffix(".png").is_file()
    assert 'src="videos/metaworld-reach-000.mp4"' in (tmp_path / "report.html").read_text()
    # Nothing is left to do, so nothing is opened.
    evaluate(run, open_broken, identity="pusher")
    assert 'src="videos/metaworld-reach-000.mp4"' in (tmp_path / "report.html").read_text()


@needs_sim
@pytest.mark.slow
def test_results_do_not_depend_on_processes(tmp_path, heldout):
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        run = replace(SETTINGS, output=str(output), shards=str(heldout), videos=0, processes=processes)
        evaluate(run, open_pusher, identity="pusher")
        summary = json.loads((output / "summary.json").read_text())
        found.append({key: summary[key] for key in ("success_mean", "per_task", "expert_success_mean")})
    assert found[0] == found[1]


def attempts_of(*outcomes: Outcome) -> list[Attempt]:
    trials = [
        Trial(task="metaworld/reach", number=number, controller=Controller.policy, film=None)
        for number in range(len(outcomes))
    ]
    return [
        Attempt(trial=trial, outcome=outcome, steps=7, seconds=0.5, instruction="go", message="")
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]


def test_an_evaluation_that_was_cut_short_goes_on(tmp_path):
    done = attempts_of(Outcome.success, Outcome.error, Outcome.failure)
    open_loop = OpenLoop(frames=3, error=0.1, mean_action_error=0.4, device="cpu")
    log = EpisodesLog(tmp_path, "this policy")
    for entry in (*done, open_loop):
        log.add(entry)
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"controller": "pol')
    EpisodesLog(tmp_path, "this policy").add(done[1])
    again = EpisodesLog(tmp_path, "this policy")
    assert again.attempts == [done[0], done[2]]
    assert again.open_loop == open_loop
    assert [again.has(attempt.trial) for attempt in done] == [True, False, True]


def test_episodes_of_another_policy_are_dropped(tmp_path):
    EpisodesLog(tmp_path, "this policy").add(attempts_of(Outcome.success)[0])
    assert EpisodesLog(tmp_path, "another").attempts == []
    assert EpisodesLog(tmp_path, "this policy").attempts == []


@needs_sim
def test_all_errors_end_in_one_message(tmp_path, heldout):
    run = replace(SETTINGS, output=str(tmp_path), shards=str(heldout), tasks=["metaworld/drawer-close"], videos=0)
    with pytest.raises(ValueError, match=r"all 2 episodes of the policy ended in an error.*the weights are on fire"):
        evaluate(run, open_exploding, identity="exploding")
    assert (tmp_path / "report.html").is_file()


@needs_sim
def test_a_policy_that_cannot_be_opened_stops_the_evaluation(tmp_path, heldout):
    run = replace(SETTINGS, output=str(tmp_path), shards=str(heldout), videos=0)
    with pytest.raises(ValueError, match="no such weights"):
        evaluate(run, open_broken, identity="broken")


@needs_sim
def test_shards_without_heldout_frames_are_refused_at_once(tmp_path):
    run = replace(SETTINGS, output=str(tmp_path / "out"), shards=str(tmp_path))
    with pytest.raises(ConfigError, match=r"shards=.*holds no heldout-\*\.tar"):
        evaluate(run, open_pusher, identity="pusher")
