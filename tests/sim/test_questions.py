"""Each kind of question: its answer is found again from a second walk through the episode, by other means."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from flagscale_vla.records import Action, Image, State, Text
from flagscale_vla.sim.episodes import encode_jpeg, record_episode
from flagscale_vla.sim.questions import clip as clips
from flagscale_vla.sim.questions.asking import ROUND, Asking, Refusal
from flagscale_vla.sim.questions.course import PATH_STEPS, SURELY_UNFINISHED
from flagscale_vla.sim.questions.wording import LISTED, TEMPLATES, Kind
from flagscale_vla.sim.worlds.tasks import make_world
from tests.sim.asked import (
    HORIZON,
    PIXELS,
    STEPS,
    Asked,
    answer,
    ask_about,
    places,
    question,
    seen_from_front,
    walk_again,
)
from tests.sim.extras import needs_sim, needs_sim_full

SEED = 5
ROWS = {"metaworld": 16, "robosuite": 8, "libero": 8}
"""So often all kinds are asked of the one episode."""
SIDES = ("left", "right", "above", "below", "in front", "behind")


def rows_of(task: str) -> int:
    return ROWS[task.split("/")[0]]


def prepare(task: str) -> tuple[object, Asked]:
    world = make_world(task, PIXELS)
    asked = ask_about(world, seed=SEED, number=1, count=rows_of(task) * len(ROUND))
    if task.startswith("metaworld"):
        model, grip = world._env.model, "endEffector"
        walk_again(world, asked, seed=SEED, model=model, get_data=lambda: world._env.data, grip=grip)
    else:
        sim = world.env.sim
        walk_again(
            world, asked, seed=SEED, model=sim.model._model, get_data=lambda: sim.data._data, grip="gripper0_grip_site"
        )
    return world, asked


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("metaworld/drawer-open", marks=needs_sim),
        pytest.param("metaworld/button-press-topdown", marks=needs_sim),
        pytest.param("robosuite/Stack/UR5e", marks=[*needs_sim_full, pytest.mark.slow]),
        pytest.param("libero/libero_spatial/2", marks=[*needs_sim_full, pytest.mark.slow]),
    ],
)
def told(request):
    world, asked = prepare(request.param)
    yield world, asked
    world.close()


def moment_of(asked: Asked, sample):
    return asked.moments[sample.meta["frame"]]


def painted_pixels(asked: Asked, sample, name: str):
    return moment_of(asked, sample).shown[sample.meta["camera"], name]


def test_boxes_are_around_the_pixels_that_paint_changes(told):
    world, asked = told
    checked = 0
    for sample in asked.of("box"):
        (name,) = sample.meta["things"]
        if [thing.name for thing in world.scene.things].count(name) > 1:
            continue
        rows, columns = np.nonzero(painted_pixels(asked, sample, name))
        ((left, top, right, bottom),) = places(sample, "bbox_2d")
        assert len(rows) >= clips.SEEN_PIXELS
        seen = [columns.min(), rows.min(), columns.max(), rows.max()]
        np.testing.assert_array_equal([left, top, right, bottom], seen, err_msg=f"{sample.key} {name}")
        checked += 1
    assert checked >= 4


def test_points_lie_on_the_thing(told):
    world, asked = told
    names = [thing.name for thing in world.scene.things]
    for sample in asked.of("point"):
        (name,) = sample.meta["things"]
        points = places(sample, "point_2d")
        assert len(points) == names.count(name)
        if len(points) == 1:
            assert painted_pixels(asked, sample, name)[points[0][1], points[0][0]]


def test_relations_agree_with_the_picture_and_the_poses(told):
    _, asked = told
    seen = Counter()
    for sample in asked.of("relation"):
        first, second = sample.meta["things"]
        moment, said = moment_of(asked, sample), answer(sample)
        assert first in question(sample)
        assert second in question(sample)
        if said in ("left", "right"):
            assert (moment.places[first][0] < moment.places[second][0]) == (said == "left")
        elif said in ("above", "below"):
            assert (moment.middles[first][2] > moment.middles[second][2]) == (said == "above")
        elif said in ("in front", "behind"):
            assert (moment.depths[first] < moment.depths[second]) == (said == "in front")
        else:
            # Corners of meshes are sparse on flat sides; the margin of the question is 4 cm.
            other = second if said == first else first
            assert moment.reaches[said] < moment.reaches[other] + 0.03
        seen[said if said in SIDES else "nearer"] += 1
    assert len(seen) >= 3


def test_counts_are_what_paint_shows(told):
    world, asked = told
    for sample in asked.of("count"):
        shown = moment_of(asked, sample).shown
        names = [thing.name for thing in world.scene.things]
        if any(names.count(name) > 1 for name in sample.meta["things"]):
            assert 1 <= int(answer(sample)) <= names.count(sample.meta["things"][0])
            continue
        visible = [name for name in sample.meta["things"] if name in names and shown["front", name].any()]
        assert answer(sample) == str(len(visible))
    assert len({answer(sample) for sample in asked.of("count")}) >= 2


def test_plans_name_what_the_expert_did_in_its_order(told):
    _, asked = told
    subtasks = asked.episode.truth.subtasks
    did = list(dict.fromkeys(moment.phase for moment in asked.moments[:-1]))
    for sample in asked.of("plan"):
        lines = answer(sample).split("\n")
        assert lines == [f"{number}. {text}" for number, text in enumerate(subtasks.values(), 1)]
        order = [lines.index(next(line for line in lines if line.endswith(subtasks[phase]))) for phase in did]
        assert order == sorted(order)


def test_what_is_next_is_the_experts_phase(told):
    _, asked = told
    for sample in asked.of("next"):
        assert answer(sample) == asked.episode.truth.subtasks[moment_of(asked, sample).phase]


def test_progress_never_falls_and_ends_at_a_hundred(told):
    _, asked = told
    known = sorted((sample.meta["frame"], int(answer(sample).removesuffix("%"))) for sample in asked.of("progress"))
    shares = [share for _, share in known]
    assert shares == sorted(shares)
    assert len(set(shares)) >= 5
    length = len(asked.episode.frames)
    assert all(abs(share - 100 * frame / length) <= 5 for frame, share in known)
    assert all((frame == length) <= (share == 100) for frame, share in known)


def test_success_is_what_the_simulator_says(told):
    _, asked = told
    assert {answer(sample) for sample in asked.of("success")} == {"yes", "no"}
    for sample in asked.of("success"):
        assert (answer(sample) == "yes") == moment_of(asked, sample).solved
        if answer(sample) == "no":
            assert sample.meta["frame"] <= sample.meta["num_frames"] - SURELY_UNFINISHED


def test_paths_are_where_the_gripper_went(told):
    world, asked = told
    assert asked.of("trajectory")
    for sample in asked.of("trajectory"):
        points = places(sample, "point_2d")
        at = [sample.meta["frame"] + step for step in PATH_STEPS][: len(points)]
        went = np.stack([projected(world, asked.moments[frame].hand) for frame in at])
        np.testing.assert_allclose(points, went, atol=0.51)
        assert f"{len(points)} points" in question(sample)


def projected(world, hand):
    """By a projection that is not the code's; the front camera stands still."""
    if world.task.startswith("metaworld"):
        return seen_from_front(world, world._env.model, world._env.data, hand)
    return seen_from_front(world, world.env.sim.model._model, world.env.sim.data._data, hand)


def test_action_turns_have_text_before_and_after(told):
    world, asked = told
    rounds = Counter()
    for sample in asked.of("action"):
        kinds = [type(part) for part in sample.segments]
        chunks = [part for part in sample.segments if isinstance(part, Action)]
        states = [part for part in sample.segments if isinstance(part, State)]
        assert len(chunks) == len(states)
        assert kinds[0] is Image
        assert isinstance(sample.segments[-1], Text)
        assert sample.segments[-1].supervised
        assert answer(sample) in ("yes", "no")
        for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            check_round(world, asked, sample.meta["frame"] + number * STEPS, chunk, state)
        rounds[len(chunks)] += 1
    assert rounds.keys() == {1, 2}
    assert {answer(sample) for sample in asked.of("action")} == {"yes", "no"}


def check_round(world, asked, at, chunk, state):
    """A chunk is the expert's, as far as the next look; the state is the frame's."""
    actions = asked.episode.actions()
    steps = min(STEPS, len(actions) - at)
    assert chunk.values.shape == (HORIZON, len(world.embodiment.action))
    np.testing.assert_array_equal(chunk.valid, np.arange(HORIZON) < steps)
    np.testing.assert_array_equal(chunk.values[:steps], actions[at : at + steps])
    np.testing.assert_array_equal(state.values, asked.moments[at].state)


def test_done_is_answered_from_the_frame_after_the_actions(told):
    _, asked = told
    order = list(asked.episode.truth.subtasks)
    length = len(asked.episode.frames)
    for sample in asked.of("action"):
        at = sample.meta["frame"]
        ends = [place for place, part in enumerate(sample.segments) if isinstance(part, Action)]
        for end in ends:
            after = min(at + STEPS, length)
            look, ask, said = sample.segments[end + 1 : end + 4]
            assert look.encoded == encode_jpeg(asked.moments[after].frames["front"])
            phase = asked.moments[at].phase
            assert asked.episode.truth.subtasks[phase] in ask.text
            later = asked.moments[after].solved or order.index(asked.moments[after].phase) > order.index(phase)
            assert said.text == ("yes" if later else "no")
            at = after


def test_pictures_are_the_episodes_frames(told):
    _, asked = told
    for sample in asked.samples:
        first = next(part for part in sample.segments if isinstance(part, Image))
        seen = moment_of(asked, sample).frames[sample.meta["camera"]]
        assert first.encoded == encode_jpeg(seen)
        names = [part.name for part in sample.segments if isinstance(part, Image)]
        assert len(set(names)) == len(names)


def test_wordings_vary_and_kinds_come_evenly(told):
    world, asked = told
    rows = rows_of(world.task)
    wanted = Counter(sample.kind.value for sample in asked.samples)
    wanted.update(refusal.kind for refusal in asked.refused)
    assert wanted == Counter({kind.value: rows * ROUND.count(kind) for kind in Kind})
    for kind in (Kind.box, Kind.next, Kind.success):
        used = {question(sample)[:7] for sample in asked.of(kind.value)}
        assert len(used) >= len(TEMPLATES[kind]) - 1
    assert len({question(sample)[:12] for sample in asked.of("count")}) >= len(LISTED) - 1


@needs_sim
def test_questions_depend_on_key_and_seed_alone():
    world = make_world("metaworld/reach", PIXELS)
    episode = record_episode(world, seed=2, number=0, noise=0.0, max_steps=0, truth=True)
    asking = Asking(count=24, steps=STEPS, horizon=HORIZON, seed=0)
    once, again = (told_by(asking, episode, world) for _ in range(2))
    fewer = told_by(dataclasses.replace(asking, count=12), episode, world)
    other = told_by(dataclasses.replace(asking, seed=1), episode, world)
    world.close()
    assert once == again
    assert fewer == {key: once[key] for key in fewer}
    assert once != other


def told_by(asking, episode, world):
    return {
        each.key: each.reason if isinstance(each, Refusal) else (each.kind, question(each), answer(each))
        for each in asking.ask(episode, world.scene)
    }


@needs_sim
def test_what_is_not_visible_is_refused_and_listed(monkeypatch):
    monkeypatch.setattr(clips, "SEEN_PIXELS", 10**6)
    world = make_world("metaworld/reach", PIXELS)
    episode = record_episode(world, seed=2, number=0, noise=0.0, max_steps=0, truth=True)
    answers = list(Asking(count=12, steps=STEPS, horizon=HORIZON, seed=0).ask(episode, world.scene))
    world.close()
    refused = {each.kind: each for each in answers if isinstance(each, Refusal)}
    assert {"box", "point"} <= refused.keys() <= {"box", "point", "relation", "count"}
    assert "not visible: fewer than 1000000 pixels" in refused["box"].reason
    assert refused["box"].key.startswith("metaworld-reach-000000-q0")
