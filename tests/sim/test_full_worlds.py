"""The full tier's worlds: other arms, other simulators, the same promises."""

from __future__ import annotations

import numpy as np
import pytest

from flagscale_vla.sim.playback import expert_actions, play_chunks, play_codec, play_raw
from flagscale_vla.sim.seeds import Purpose, episode_seed
from flagscale_vla.sim.worlds.tasks import LIBERO_TASKS, ROBOSUITE_TASKS, make_world
from tests.sim.clients import FixedCodec
from tests.sim.extras import needs_sim_full

pytestmark = needs_sim_full

PIXELS = 64
QUICK = ("robosuite/Lift/UR5e", "libero/libero_object/0")


def run_expert(world, seed):
    """Actions f32[steps, 7], phases, and whether the task was done."""
    world.reset(seed)
    actions, phases = [], []
    for _ in range(world.max_steps):
        actions.append(world.expert_action())
        phases.append(world.phase())
        if world.step(actions[-1]):
            return np.stack(actions), phases, True
    return np.stack(actions), phases, False


@pytest.fixture(params=QUICK, scope="module")
def world(request):
    found = make_world(request.param, PIXELS)
    yield found
    found.close()


@pytest.mark.slow
def test_an_episode_follows_from_its_seed_alone(world):
    first, phases, solved = run_expert(world, 3)
    other, _, _ = run_expert(world, 4)
    again, _, _ = run_expert(world, 3)
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert solved
    assert list(dict.fromkeys(phases))[:4] == ["reach", "lower", "grasp", "lift"]
    assert np.abs(first).max() <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["robosuite/Lift/UR5e"])
def test_an_episode_is_the_same_in_every_process(task):
    """A process is imitated by a generator that stands elsewhere when the world is made."""
    episodes = []
    for start in (1, 2):
        np.random.seed(start)
        world = make_world(task, 0)
        actions, _, _ = run_expert(world, 3)
        episodes.append((actions, world.env.sim.model._model.geom_size.copy()))
        world.close()
    (first, sizes), (second, other_sizes) = episodes
    np.testing.assert_array_equal(sizes, other_sizes)
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_observation_matches_the_embodiment(world):
    world.reset(0)
    seen = world.observe()
    assert tuple(seen.images) == world.embodiment.cameras
    assert seen.state.shape == (len(world.embodiment.state),) == (7,)
    assert all(frame.shape == (PIXELS, PIXELS, 3) and frame.std() > 5 for frame in seen.images.values())
    assert not np.array_equal(seen.images["front"], seen.images["wrist"])
    assert seen.instruction in world.phrasings
    assert len(set(world.phrasings)) >= 4
    world.step(np.array([0, 0, 1, 0, 0, 0, -1], np.float32))
    for _ in range(5):
        world.step(np.array([0, 0, 1, 0, 0, 0, -1], np.float32))
    assert world.observe().state[2] > seen.state[2] + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("task", QUICK)
def test_an_exact_codec_does_what_the_expert_does(task):
    world = make_world(task, 0)
    world.reset(7)
    steps = len(expert_actions(world, world.max_steps))
    codec = FixedCodec(horizon=40)
    for play in (play_raw(expert_actions, 0), play_codec(codec, expert_actions, 0), play_chunks(codec)):
        world.reset(7)
        assert play(world, 7, world.max_steps) == (True, steps)
    world.close()


@pytest.mark.slow
def test_libero_evaluates_on_states_it_never_records():
    world = make_world("libero/libero_object/0", PIXELS)
    states = {}
    for purpose in (Purpose.train, Purpose.heldout, Purpose.evaluate):
        placed = []
        for number in range(12):
            world.reset(episode_seed(purpose, 0, number))
            placed.append(tuple(world.env.sim.data.qpos[9:].round(6)))
        states[purpose] = set(placed)
    world.close()
    assert not states[Purpose.train] & states[Purpose.evaluate]
    assert not states[Purpose.train] & states[Purpose.heldout]
    assert len(states[Purpose.train]) == 12
    assert len(states[Purpose.evaluate]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("task", ROBOSUITE_TASKS + LIBERO_TASKS)
def test_expert_succeeds(task):
    world = make_world(task, PIXELS)
    solved = [run_expert(world, seed)[2] for seed in range(3)]
    world.close()
    assert sum(solved) >= 2
