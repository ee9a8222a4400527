"""Worlds: same seed, same episode; the expert succeeds; frames are real and a renderer's failure is an error."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from flagscale_vla.sim.seeds import Purpose, episode_seed
from flagscale_vla.sim.worlds import backend, tasks
from flagscale_vla.sim.worlds.tasks import LIGHT_TASKS, make_world
from tests.sim.extras import needs_sim

pytestmark = needs_sim

PIXELS = 64


@pytest.fixture(scope="module")
def door():
    world = make_world("metaworld/door-open", PIXELS)
    yield world
    world.close()


def roll_expert(world, seed, max_steps=40):
    """Actions of one expert episode and whether it succeeded."""
    world.reset(seed)
    actions = []
    for _ in range(max_steps):
        actions.append(world.expert_action())
        if world.step(actions[-1]):
            return np.stack(actions), True
    return np.stack(actions), False


def test_an_episode_follows_from_its_seed_alone(door):
    first, _ = roll_expert(door, 3)
    other, _ = roll_expert(door, 4)
    again, _ = roll_expert(door, 3)
    fresh = make_world("metaworld/door-open", PIXELS)
    elsewhere, _ = roll_expert(fresh, 3)
    fresh.close()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, elsewhere)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_seeds_give_distinct_first_views(door):
    views = []
    for seed in range(6):
        door.reset(seed)
        views.append(door.observe().images["front"].tobytes())
    assert len(set(views)) == 6


def test_frames_do_not_depend_on_history(door):
    door.reset(5)
    before = door.observe()
    roll_expert(door, 6, max_steps=5)
    door.reset(5)
    after = door.observe()
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(before.images[camera], after.images[camera])
    assert before.instruction == after.instruction
    np.testing.assert_array_equal(before.state, after.state)


def test_the_first_view_shows_where_objects_are_now():
    world, fresh = (make_world("metaworld/window-close", PIXELS) for _ in range(2))
    world.reset(5)
    world.reset(9)
    fresh.reset(9)
    seen, expected = world.observe(), fresh.observe()
    np.testing.assert_array_equal(world.expert_action(), fresh.expert_action())
    for camera, frame in expected.images.items():
        np.testing.assert_array_equal(seen.images[camera], frame)
    world.close()
    fresh.close()


def test_observation_matches_the_embodiment(door):
    door.reset(0)
    seen = door.observe()
    assert seen.robot == door.embodiment.name == "metaworld_sawyer"
    assert tuple(seen.images) == door.embodiment.cameras
    assert seen.state.shape == (len(door.embodiment.state),)
    assert seen.state.dtype == np.float32
    assert seen.instruction in door.phrasings
    for frame in seen.images.values():
        assert frame.shape == (PIXELS, PIXELS, 3)
        assert frame.std() > 5
    assert not np.array_equal(seen.images["front"], seen.images["wrist"])


@pytest.mark.parametrize("task", LIGHT_TASKS)
def test_expert_succeeds(task):
    world = make_world(task, PIXELS)
    solved = [roll_expert(world, seed)[1] for seed in range(4)]
    world.close()
    assert all(solved)
    assert len(set(world.phrasings)) >= 4


def test_doing_nothing_does_not_succeed(door):
    door.reset(0)
    assert not any(door.step(np.zeros(4, np.float32)) for _ in range(50))


def test_phases_come_in_order(door):
    door.reset(1)
    phases = []
    for _ in range(40):
        phases.append(door.phase())
        if door.step(door.expert_action()):
            break
    assert phases[0] == "reach"
    assert phases[-1] == "pull"


def test_two_worlds_may_look_in_turn(door):
    other = make_world("metaworld/drawer-open", PIXELS)
    door.reset(1)
    other.reset(1)
    mine, theirs = door.observe(), other.observe()
    again = door.observe()
    other.close()
    assert not np.array_equal(mine.images["front"], theirs.images["front"])
    np.testing.assert_array_equal(mine.images["front"], again.images["front"])


def test_blank_frame_is_an_error(door, monkeypatch):
    cameras = sys.modules["flagscale_vla.sim.worlds.cameras"]
    door.reset(0)
    door.observe()
    monkeypatch.setattr(cameras.mujoco.Renderer, "render", lambda self: np.full((PIXELS, PIXELS, 3), 7, np.uint8))
    with pytest.raises(cameras.FrameError, match=r"metaworld/door-open: camera 'front' .*blank frame, all pixels 7"):
        door.observe()


def test_stale_frame_is_an_error(door, monkeypatch):
    cameras = sys.modules["flagscale_vla.sim.worlds.cameras"]
    stuck = np.random.default_rng(0).integers(0, 255, (PIXELS, PIXELS, 3), np.uint8)
    monkeypatch.setattr(cameras.mujoco.Renderer, "render", lambda self: stuck)
    door.reset(0)
    door.observe()
    door.observe()
    for _ in range(3):
        door.step(np.array([0, 0, 1, 0], np.float32))
    with pytest.raises(cameras.FrameError, match="same frame though the hand moved"):
        door.observe()


@pytest.mark.parametrize("action", [np.zeros(7, np.float32), np.array([np.nan, 0, 0, 0], np.float32)])
def test_bad_action_is_refused(door, action):
    door.reset(0)
    with pytest.raises(ValueError, match="4 finite numbers"):
        door.step(action)


def test_unknown_task_names_those_there_are():
    with pytest.raises(ValueError, match=r"metaworld/fly-away.*metaworld/door-open"):
        make_world("metaworld/fly-away", PIXELS)


def test_missing_extra_names_the_install_line(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'flagscale_vla\[sim\]'"):
        make_world("metaworld/door-open", PIXELS)


@pytest.mark.parametrize("chosen", ["", "osmesa"])
def test_no_renderer_names_the_packages(monkeypatch, chosen):
    monkeypatch.setenv("MUJOCO_GL", chosen)
    monkeypatch.delenv(backend.TRIED, raising=False)
    monkeypatch.setattr(backend, "draws", lambda name: False)
    with pytest.raises(OSError, match="apt-get install -y libegl1 libgl1-mesa-dri libosmesa6") as caught:
        backend.choose_backend()
    assert ("unset MUJOCO_GL=osmesa" in str(caught.value)) == bool(chosen)


def test_first_renderer_that_draws_is_taken_once(monkeypatch):
    tried = []
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv(backend.TRIED, raising=False)
    monkeypatch.setattr(backend, "draws", lambda name: tried.append(name) or name == "osmesa")
    assert backend.choose_backend() == backend.choose_backend() == "osmesa"
    assert tried == ["egl", "osmesa"]


def test_seeds_of_one_purpose_meet_those_of_no_other():
    numbers = range(500)
    seeds = {purpose: {episode_seed(purpose, run, n) for run in (0, 7, 10**6) for n in numbers} for purpose in Purpose}
    assert all(len(found) == 3 * len(numbers) for found in seeds.values())
    assert not seeds[Purpose.train] & seeds[Purpose.evaluate]
    assert not seeds[Purpose.train] & seeds[Purpose.heldout]
    assert not seeds[Purpose.heldout] & seeds[Purpose.evaluate]
    assert max(max(found) for found in seeds.values()) < 2**32
