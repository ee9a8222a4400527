"""A codec whose chunks begin at the state: in a training label, and in a policy's answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from torch import distributed

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import Answer
from flagscale_vla.data.codes import ActionCodes
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.mcore.initial import draw_weights
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.policy.codec import TokenizerCodec
from flagscale_vla.policy.policy import Policy
from flagscale_vla.records import Action, Image, Observation, RawSample, State, Text
from flagscale_vla.robots.statistics import RobotStatistics
from flagscale_vla.train.pictures import read_chunks
from tests.action.targets import ARM, make_targets, pinned_codec
from tests.model.rows import settings
from tests.samples import encode_picture, make_recipe, picture, unit_statistics

VOCAB, HORIZON = 768, 8


def pinned_recipe() -> Recipe:
    """`make_recipe`, with the arm among its robots."""
    plain = make_recipe(horizon=HORIZON, vocab=VOCAB, answer=Answer.codes, codec=pinned_codec())
    statistics = RobotStatistics(state=unit_statistics(len(ARM.state)), action=unit_statistics(len(ARM.action)))
    return Recipe(
        tokenizers=plain.tokenizers,
        embodiments=plain.embodiments | {ARM.name: ARM},
        statistics=plain.statistics | {ARM.name: statistics},
        image=plain.image,
        action=plain.action,
        width=plain.width,
        system_prompt=plain.system_prompt,
    )


def frame(number: int, *, told: bool = True) -> RawSample:
    """A picture, where the arm is, unless that is not told, and where it is to go."""
    targets, states = make_targets(10, 7)
    seen = Image(name="front", encoded=encode_picture(picture(np.random.default_rng(number), 56, 56)))
    state = [State(values=states[number] / 2, robot=ARM.name)] if told else []
    action = Action(values=targets[number] / 2, valid=np.ones(len(targets[number]), np.bool_), robot=ARM.name)
    return RawSample(key=f"arm-{number}", segments=(seen, *state, Text(text="go", supervised=False), action))


def start_of(raw: RawSample) -> np.ndarray:
    return next(segment.values for segment in raw.segments if isinstance(segment, State))


def test_a_label_counts_from_the_samples_state() -> None:
    recipe, raw = pinned_recipe(), frame(3)
    batch = recipe.pack([recipe.sample(raw, seed=0, epoch=0, augment=False)], 256)
    codes = [token - recipe.codes.ids.first for token in batch.tokens.tolist() if recipe.codes.ids.holds(token)]
    target = raw.segments[-1].values[None, :HORIZON]
    (expected,) = pinned_codec().encode(ARM.name, target, start_of(raw)[None])
    assert codes == expected.tolist()
    # What a page shows of it begins there, too.
    (shown,) = read_chunks(batch, recipe, ARM.name, 0, 256)
    np.testing.assert_allclose(shown.values[0, :6], start_of(raw)[1:], atol=1e-6)


def test_a_robot_whose_state_has_other_names_than_were_fitted_is_told() -> None:
    recipe = pinned_recipe()
    other = dataclasses.replace(ARM, state=(*ARM.state[1:], "gripper"))
    with pytest.raises(ConfigError, match=r"at the state \['gripper', .* of robot 'arm', which has \['joint"):
        ActionCodes(pinned_codec(), recipe.codes.ids, HORIZON, {"arm": other})


def test_a_sample_without_a_state_is_a_bad_one() -> None:
    with pytest.raises(BadSampleError, match=r"arm-1.*robot 'arm': its chunks begin at its state"):
        pinned_recipe().sample(frame(1, told=False), seed=0, epoch=0, augment=False)


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    """Of random weights."""
    torch.set_num_threads(1)
    run = settings(f"model.language.vocab={VOCAB}")
    platform = choose_platform(run.platform)
    model = VisionLanguageAction(run.model, run.parallel, platform, Topology.start(run.parallel, platform))
    draw_weights(model, 0)
    yield Policy(model, pinned_recipe(), platform, denoise_steps=1, temperature=1.0, key="random")
    parallel_state.destroy_model_parallel()
    distributed.destroy_process_group()


def test_a_policys_chunk_begins_where_the_robot_is(policy: Policy) -> None:
    for number in range(3):
        state = start_of(frame(number))
        images = {"front": picture(np.random.default_rng(number), 56, 56)}
        seen = Observation(images=images, state=state, instruction="go", robot=ARM.name)
        (chunk,) = policy.infer([seen], seed=number)
        np.testing.assert_array_equal(chunk.values[0, :6], state[1:])
        (expected,) = pinned_codec().decode(ARM.name, [chunk.codes], HORIZON, state[None])
        np.testing.assert_array_equal(chunk.values, expected)


def test_a_replay_needs_the_state_that_it_goes_on_from() -> None:
    codec = TokenizerCodec(pinned_codec(), HORIZON)
    raw = frame(0)
    target, state = raw.segments[-1].values[:HORIZON], start_of(raw)
    np.testing.assert_array_equal(codec.reconstruct(ARM.name, target, state)[0, :6], state[1:])
    with pytest.raises(ValueError, match="robot 'arm': its chunks begin at its state"):
        codec.reconstruct(ARM.name, target)
