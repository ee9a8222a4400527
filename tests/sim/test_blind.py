"""Worlds and recordings without pictures: no renderer, the same episodes, shards that index and load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.runs import RecordRun, Tier
from flagscale_vla.data.index import open_index
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import Action, Image, Observation, State, Text
from flagscale_vla.robots.embodiments import load_embodiments
from flagscale_vla.sim import blocks, record
from flagscale_vla.sim.episodes import record_episode
from flagscale_vla.sim.workers import close_world, open_world
from flagscale_vla.sim.worlds import backend
from flagscale_vla.sim.worlds.tasks import make_world
from tests.samples import make_recipe
from tests.sim.extras import needs_sim

pytestmark = needs_sim

TASKS = ["metaworld/reach", "metaworld/drawer-close"]
SETTINGS = RecordRun(
    output="unset",
    tier=Tier.light,
    tasks=TASKS,
    episodes=2,
    heldout_episodes=1,
    image_pixels=0,
    horizon=16,
    noise=0.4,
    max_steps=0,
    questions=0,
    question_steps=8,
    processes=1,
    seed=3,
)


@pytest.fixture(scope="module")
def blind(tmp_path_factory) -> Path:
    """Shards of six episodes, recorded in this process with a renderer that cannot be opened."""
    folder = tmp_path_factory.mktemp("blind")
    run = replace(SETTINGS, output=str(folder))
    plan = blocks.plan_blocks(run, TASKS)
    with pytest.MonkeyPatch.context() as patch:
        make_world(TASKS[0], 0).close()
        patch.setattr("mujoco.Renderer", None)
        for block in plan:
            blocks.record_block((run, block))
    record.conclude(run, plan, 1.0)
    yield folder
    close_world()


def recipe_of(folder: Path) -> Recipe:
    """A recipe for the robots of a folder."""
    other = make_recipe(horizon=16)
    return Recipe(
        tokenizers=other.tokenizers,
        embodiments=load_embodiments(folder),
        statistics={},
        image=other.image,
        action=other.action,
        width=other.width,
        system_prompt=other.system_prompt,
    )


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_actions_and_states_are_those_of_an_episode_with_pictures(noise):
    episodes = []
    for pixels in (0, 64):
        world = open_world("metaworld/drawer-close", pixels)
        episodes.append(record_episode(world, seed=5, number=0, noise=noise, max_steps=0))
    close_world()
    plain, seen = episodes
    np.testing.assert_array_equal(plain.actions(), seen.actions())
    for without, with_pictures in zip(plain.frames, seen.frames, strict=True):
        np.testing.assert_array_equal(without.state, with_pictures.state)
        assert (len(without.images), len(with_pictures.images)) == (0, 2)
    assert plain.instruction == seen.instruction


def test_the_robot_has_no_cameras_and_the_report_no_strips(blind):
    robot = load_embodiments(blind)["metaworld_sawyer"]
    assert robot.cameras == ()
    assert robot.action_scale == (0.04, 0.04, 0.04, 0.0)
    report = (blind / "report.html").read_text()
    assert report.count("data:image/png") == 1
    assert "First episode" not in report
    assert json.loads((blind / "summary.json").read_text())["episodes"] == 4


def test_shards_index_load_and_train(blind):
    recipe = recipe_of(blind)
    index = open_index(LocalStore(blind), "train", recipe)
    assert index.faults == ()
    assert len(index) == json.loads((blind / "summary.json").read_text())["steps"]
    raw = read_sample(index.store, index.place(3))
    assert [type(segment) for segment in raw.segments] == [State, Text, Action]
    assert not [segment for segment in raw.segments if isinstance(segment, Image)]
    sample = recipe.with_statistics(index.statistics).sample(raw, seed=0, epoch=0, augment=True)
    assert (sample.pixels.shape, sample.frames.shape, sample.grid.shape) == ((0,), (0,), (0, 3))
    assert len(sample.tokens) == index.lengths[3]


def test_a_policy_trained_so_refuses_pictures_and_takes_none(blind):
    recipe = recipe_of(blind)
    recipe = recipe.with_statistics(open_index(LocalStore(blind), "train", recipe).statistics)
    seen = Observation(images={}, state=np.zeros(4, np.float32), instruction="reach", robot="metaworld_sawyer")
    assert len(recipe.prompt(seen, seed=0).pixels) == 0
    with pytest.raises(ValueError, match=r"'metaworld_sawyer' has cameras \[\], the observation has \['front'\]"):
        recipe.prompt(replace(seen, images={"front": np.zeros((64, 64, 3), np.uint8)}), seed=0)


def test_a_unit_of_action_moves_the_hand_by_its_scale():
    world = make_world("metaworld/reach", 0)
    scale = world.embodiment.action_scale
    for dim in range(3):
        world.reset(5)
        before = world.observe().state
        for action in [*[np.eye(4, dtype=np.float32)[dim] / 2] * 4, *[np.zeros(4, np.float32)] * 12]:
            world.step(action)
        moved = world.observe().state[dim] - before[dim]
        assert moved / 2 == pytest.approx(scale[dim], rel=0.15)
    world.close()


def test_without_opengl_mujoco_does_without(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv(backend.TRIED, raising=False)
    monkeypatch.setattr(backend, "draws", lambda name: False)
    backend.choose_any_backend()
    assert backend.os.environ["MUJOCO_GL"] == "disable"
    with pytest.raises(OSError, match="cannot draw here"):
        backend.choose_backend()


def test_negative_sides_are_refused():
    with pytest.raises(ConfigError, match="image_pixels=-1: must not be negative; 0 is no pictures"):
        replace(SETTINGS, image_pixels=-1)
