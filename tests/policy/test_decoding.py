"""Codes that are written with kept keys and values are those of the whole row, and always legal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from torch import distributed

from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.action.vocabulary import ActionIds
from flagscale_vla.config.data import Answer
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.mcore.initial import draw_weights
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.policy.decoding import Writer, write_codes, write_codes_and_denoise
from flagscale_vla.records import PackedBatch, Sample
from tests.data.test_recipe import observe
from tests.model.rows import settings
from tests.model.test_sampling import STEPS, denoise_whole
from tests.samples import PANDA, SAWYER, binning, fast, make_recipe, omnisat, robot_sample

VOCAB = 768
ROBOTS = (SAWYER, PANDA, SAWYER, PANDA)


@pytest.fixture(scope="module")
def model() -> Iterator[VisionLanguageAction]:
    """A small model with large random weights, so that what it wants to write differs from place to place."""
    torch.set_num_threads(1)
    run = settings(f"model.language.vocab={VOCAB}", "model.language.tied=false")
    platform = choose_platform(run.platform)
    made = VisionLanguageAction(run.model, run.parallel, platform, Topology.start(run.parallel, platform)).eval()
    draw_weights(made, 0)
    with torch.no_grad():
        made.language.embedding.word_embeddings.weight.mul_(50.0)
    yield made
    parallel_state.destroy_model_parallel()
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=["binning", "fast", "omnisat"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    codec: ActionTokenizer = {"binning": binning, "fast": fast, "omnisat": omnisat}[request.param]()
    return make_recipe(vocab=VOCAB, answer=Answer.both, codec=codec)


def prompts(recipe: Recipe) -> list[Sample]:
    return [recipe.prompt(observe(robot_sample(n, robot)), seed=n) for n, robot in enumerate(ROBOTS)]


def row(recipe: Recipe, samples: list[Sample]) -> PackedBatch:
    return recipe.pack(samples, sum(len(sample.tokens) for sample in samples))


def written(recipe: Recipe, prompt: Sample, codes: list[int]) -> Sample:
    """A prompt with these codes in it and its chunk behind them."""
    start, count = int(prompt.action_slots[0, 0]), len(codes)
    tokens = torch.cat([prompt.tokens[:start], torch.tensor(recipe.codes.ids.tokens(np.asarray(codes, np.int64)))])
    tokens = torch.cat([tokens.long(), prompt.tokens[start : start + 8]])
    behind = prompt.positions[:, start : start + 1] + torch.arange(count + 8)
    return replace(
        prompt,
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        positions=torch.cat([prompt.positions[:, :start], behind], dim=1),
        action_slots=prompt.action_slots + count,
    )


@torch.no_grad()
def next_code(model: VisionLanguageAction, recipe: Recipe, prompt: Sample, codes: list[int], legal: np.ndarray) -> int:
    """What the whole row, run anew, likes best of what is legal."""
    batch = row(recipe, [written(recipe, prompt, codes)])
    hidden = model.language.transform(model.embed(batch), batch.cu_seqlens, batch.positions).squeeze(1)
    logits = model.language.logits(hidden[batch.action_slots[:1, 0] - 1])[0]
    return int(legal[int(logits[recipe.codes.ids.first + torch.from_numpy(legal)].argmax())])


def test_kept_keys_and_values_write_what_the_whole_row_does(model: VisionLanguageAction, recipe: Recipe) -> None:
    grammars = [recipe.codes.grammar(robot.name) for robot in ROBOTS]
    writer = Writer(ids=recipe.codes.ids, temperature=0.0)
    found = write_codes(model, row(recipe, prompts(recipe)), writer, grammars, seed=0)
    assert len({len(codes) for codes in found}) > 1
    for prompt, grammar, codes in zip(prompts(recipe), grammars, found, strict=True):
        expected: list[int] = []
        while len(legal := grammar.legal(expected)):
            expected.append(next_code(model, recipe, prompt, expected, legal))
        assert codes.tolist() == expected
    assert len({str(codes.tolist()) for codes in found}) >= 3


def test_a_chunk_behind_codes_is_what_the_whole_row_denoises(model: VisionLanguageAction, recipe: Recipe) -> None:
    grammars = [recipe.codes.grammar(robot.name) for robot in ROBOTS]
    writer = Writer(ids=recipe.codes.ids, temperature=0.0)
    batch = row(recipe, prompts(recipe))
    codes, actions = write_codes_and_denoise(model, batch, writer, grammars, seed=0, steps=STEPS)
    again = write_codes(model, batch, writer, grammars, seed=0)
    assert [string.tolist() for string in codes] == [string.tolist() for string in again]
    samples = [written(recipe, prompt, string.tolist()) for prompt, string in zip(prompts(recipe), codes, strict=True)]
    whole = denoise_whole(model, row(recipe, samples))
    torch.testing.assert_close(actions, whole, atol=2e-5, rtol=1e-5)
    assert (actions - batch.noise).abs().max() > 0.1


def test_drawn_codes_are_legal_and_belong_to_seed_and_place(model: VisionLanguageAction, recipe: Recipe) -> None:
    grammars = [recipe.codes.grammar(robot.name) for robot in ROBOTS]
    writer = Writer(ids=recipe.codes.ids, temperature=5.0)
    batch = row(recipe, prompts(recipe))
    first, again, other = (
        [codes.tolist() for codes in write_codes(model, batch, writer, grammars, seed=seed)] for seed in (3, 3, 9)
    )
    assert first == again
    assert first != other
    for robot, codes in zip(ROBOTS, first, strict=True):
        assert recipe.codes.decode(robot.name, np.asarray(codes)).shape == (8, len(robot.action))
    alone = write_codes(model, row(recipe, prompts(recipe)[1:2]), writer, grammars[1:2], seed=4)
    assert alone[0].tolist() == first[1]


def test_what_is_illegal_is_never_chosen_however_much_it_is_liked() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0, float("nan")], [0.0, float("inf"), -5.0, 3.0]])
    legal = [np.asarray([1, 2]), np.asarray([2])]
    greedy = Writer(ids=ActionIds(first=0, num_codes=4), temperature=0.0)
    assert greedy.choose(logits, legal, []) == [2, 2]
    drawing = Writer(ids=ActionIds(first=0, num_codes=4), temperature=1.0)
    generators = [np.random.default_rng(seed) for seed in (0, 1)]
    drawn = [drawing.choose(logits, legal, generators) for _ in range(400)]
    assert {pair[1] for pair in drawn} == {2}
    # Of logits 1 and 2 the second is drawn 73 times of 100.
    assert 0.66 < np.mean([pair[0] == 2 for pair in drawn]) < 0.80
