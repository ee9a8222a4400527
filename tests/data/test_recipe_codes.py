"""Chunks written as codes: what a sample holds, what is trained on, and that the codes are the chunk."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import Answer
from flagscale_vla.data.codes import check_ranges, with_layers
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.index import build_index
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import Action, RawSample, Sample
from tests.data.test_recipe import assert_same, observe
from tests.samples import (
    PANDA,
    SAWYER,
    binning,
    fast,
    interleaved_sample,
    make_recipe,
    omnisat,
    picture_sample,
    robot_sample,
    text_sample,
    write_shards,
)


@pytest.fixture(scope="module", params=["binning", "fast", "omnisat"])
def codec(request: pytest.FixtureRequest) -> ActionTokenizer:
    return {"binning": binning, "fast": fast, "omnisat": omnisat}[request.param]()


@pytest.fixture(scope="module")
def recipe(codec: ActionTokenizer) -> Recipe:
    return make_recipe(vocab=768, answer=Answer.codes, codec=codec)


@pytest.fixture(scope="module")
def both(codec: ActionTokenizer) -> Recipe:
    return make_recipe(vocab=768, answer=Answer.both, codec=codec)


def make(recipe: Recipe, raw: RawSample, seed: int = 0) -> Sample:
    return recipe.sample(raw, seed=seed, epoch=0, augment=False)


def chunks_of(recipe: Recipe, raw: RawSample) -> list[list[int]]:
    """Token ids of each chunk's codes, from the tokenizer itself."""
    codec, ids = recipe.tokenizers.actions, recipe.codes.ids
    actions = [segment for segment in raw.segments if isinstance(segment, Action)]
    return [ids.tokens(codec.encode(action.robot, action.values[None, :8])[0]) for action in actions]


def between_markers(recipe: Recipe, tokens: list[int]) -> list[list[int]]:
    """The tokens between each beginning and the end that follows it."""
    v = recipe.vocabulary
    starts = [place for place, token in enumerate(tokens) if token == v.action_start]
    return [tokens[start + 1 : tokens.index(v.action_end, start)] for start in starts]


def labelled(sample: Sample) -> list[int]:
    """Supervised tokens; each label is the token that comes next."""
    places = torch.nonzero(sample.labels >= 0).squeeze(1)
    assert torch.equal(sample.labels[places], sample.tokens[places + 1])
    return sample.labels[places].tolist()


@pytest.mark.parametrize("robot", [SAWYER, PANDA])
def test_codes_in_a_sample_decode_to_its_chunk(recipe: Recipe, codec: ActionTokenizer, robot: object) -> None:
    raw = robot_sample(3, robot)  # type: ignore[arg-type]
    sample = make(recipe, raw)
    (written,) = between_markers(recipe, sample.tokens.tolist())
    assert written == chunks_of(recipe, raw)[0]
    action = raw.segments[-1]
    assert isinstance(action, Action)
    again = recipe.codes.decode(action.robot, recipe.codes.ids.codes(written))
    expected = codec.decode(action.robot, codec.encode(action.robot, action.values[None, :8]), 8)[0]
    np.testing.assert_array_equal(again, expected)
    if codec.kind != "omnisat":
        # Clipped to the range, they are the chunk up to the codec's own error.
        assert np.abs(again - action.values[:8].clip(-1, 1)).mean() < 0.2


def test_codes_and_both_markers_are_trained_on_and_nothing_else_is_noised(recipe: Recipe) -> None:
    raw, v = robot_sample(0), recipe.vocabulary
    sample = make(recipe, raw)
    (codes,) = chunks_of(recipe, raw)
    newline = recipe.conversation.encoder.encode("\n")
    assert labelled(sample) == [v.action_start, *codes, v.action_end, v.turn_end, *newline]
    assert sample.actions.shape == sample.noise.shape == (0, 8, 8)
    assert sample.action_slots.shape == (0, 8)
    assert not (sample.tokens == v.action_pad).any()
    batch = recipe.pack([sample], 256)
    assert batch.num_action_values == 0
    assert (batch.action_slots == -1).all()


def test_in_both_a_chunk_follows_its_codes(both: Recipe) -> None:
    raw, v = robot_sample(0), both.vocabulary
    sample = make(both, raw)
    (codes,) = chunks_of(both, raw)
    assert between_markers(both, sample.tokens.tolist()) == [codes + [v.action_pad] * 8]
    newline = both.conversation.encoder.encode("\n")
    assert labelled(sample) == [v.action_start, *codes, v.action_end, v.turn_end, *newline]
    assert (sample.tokens[sample.action_slots] == v.action_pad).all()
    flow = make(make_recipe(vocab=768), raw)
    for name in ("actions", "noise", "time", "action_valid", "states", "pixels"):
        ours, theirs = (object.__getattribute__(one, name) for one in (sample, flow))
        assert torch.equal(ours, theirs), name


def test_every_chunk_of_a_conversation_is_written_and_trained_on(recipe: Recipe) -> None:
    raw = interleaved_sample(0, num_chunks=3)
    sample = make(recipe, raw)
    assert between_markers(recipe, sample.tokens.tolist()) == chunks_of(recipe, raw)
    trained = labelled(sample)
    assert sum(map(recipe.codes.ids.holds, trained)) == sum(map(len, chunks_of(recipe, raw)))
    assert recipe.conversation.encoder.decode(sample.tokens.tolist()).endswith("yes<|im_end|>\n")


def test_in_both_context_chunks_are_clean_behind_their_codes(both: Recipe) -> None:
    raw, v = interleaved_sample(0, num_chunks=3), both.vocabulary
    codes = chunks_of(both, raw)
    for seed in range(12):
        sample = make(both, raw, seed)
        noised = (sample.time > 0).tolist()
        pads = [v.action_pad if one else v.action_pass for one in noised]
        written = [string + [pad] * 8 for string, pad in zip(codes, pads, strict=False)]
        assert between_markers(both, sample.tokens.tolist()) == written
        assert sum(noised) <= 1


def test_text_and_pictures_are_what_they_were(recipe: Recipe) -> None:
    plain = make_recipe(vocab=768)
    for raw in (text_sample(0, 20), picture_sample(1, 20)):
        assert_same(make(recipe, raw), make(plain, raw))


def test_length_is_the_samples(recipe: Recipe, both: Recipe) -> None:
    for raw in (robot_sample(0), robot_sample(3, PANDA), text_sample(1, 30), interleaved_sample(2)):
        assert recipe.length(raw) == make(recipe, raw).tokens.numel()
        longest = max(make(both, raw, seed).tokens.numel() for seed in range(8))
        assert both.length(raw) == longest


def test_a_policy_sees_what_training_saw_up_to_its_codes(recipe: Recipe, both: Recipe) -> None:
    raw = robot_sample(5, side=200)
    for one in (recipe, both):
        trained, prompt = make(one, raw), one.prompt(observe(raw), seed=7)
        start = int(prompt.action_slots[0, 0])
        assert prompt.tokens[start - 1] == one.vocabulary.action_start
        assert torch.equal(prompt.tokens[:start], trained.tokens[:start])
        # The first two codes stand where the first two placeholders of the prompt do.
        assert torch.equal(prompt.positions[:, : start + 2], trained.positions[:, : start + 2])
        assert prompt.noise.shape == (1, 8, 8)


def test_a_recipe_with_codes_survives_disk_and_a_worker(recipe: Recipe, both: Recipe, tmp_path: Path) -> None:
    for place, one in enumerate((recipe, both)):
        one.save(tmp_path / str(place))
        assert (tmp_path / str(place) / "action_tokenizer" / "action_tokenizer.json").is_file()
        loaded = Recipe.load(tmp_path / str(place))
        assert loaded.action == one.action
        assert loaded.codes.digest == one.codes.digest
        for other in (loaded, pickle.loads(pickle.dumps(one)), one.with_statistics(one.statistics)):
            for raw in (robot_sample(0), interleaved_sample(1)):
                assert_same(make(one, raw, 3), make(other, raw, 3))


def test_an_index_counts_codes_and_is_another_one_for_other_codes(recipe: Recipe, tmp_path: Path) -> None:
    raws = [robot_sample(0), robot_sample(1, PANDA), text_sample(2, 20)]
    write_shards(tmp_path, raws)
    index = build_index(LocalStore(tmp_path), "train", recipe)
    assert index.lengths.tolist() == [make(recipe, raw).tokens.numel() for raw in raws]
    layouts = [recipe.layout(), make_recipe(vocab=768).layout()]
    layouts += [make_recipe(vocab=768, answer=Answer.codes, codec=binning(bins)).layout() for bins in (15, 14)]
    assert len({str(layout) for layout in layouts}) == len(layouts)


def test_a_recipe_from_before_codes_is_read(tmp_path: Path) -> None:
    recipe = make_recipe()
    recipe.save(tmp_path)
    path = tmp_path / "recipe.json"
    text = path.read_text()
    for line in ('"answer": "flow"', '"tokenizer": ""', '"layers": 0', '"ids": "appended"'):
        assert line in text
        text = text.replace(f"    {line},\n", "")
    assert "answer" not in text
    path.write_text(text)
    assert Recipe.load(tmp_path).action == recipe.action


def test_a_robot_that_the_codes_do_not_know_is_told(recipe: Recipe) -> None:
    codec = binning()
    known = {"panda": PANDA}
    codec.embodiments = known  # type: ignore[assignment]
    ours = make_recipe(vocab=768, answer=Answer.codes, codec=codec)
    with pytest.raises(ConfigError, match=r"action\.tokenizer=binning: robot 'sawyer' was not fitted; known"):
        ours.length(robot_sample(0))


def test_a_robot_with_other_dims_than_were_fitted_is_told() -> None:
    codec = binning()
    codec.embodiments = {"sawyer": dataclasses.replace(SAWYER, action=("dx", "dy", "gripper", "dz"))}
    with pytest.raises(ConfigError, match=r"fitted on actions \['dx', 'dy', 'gripper', 'dz'\] of robot 'sawyer'"):
        make_recipe(vocab=768, answer=Answer.codes, codec=codec)


def test_actions_in_another_unit_than_was_fitted_are_told() -> None:
    statistics = make_recipe().statistics
    check_ranges(binning(), statistics)
    part = statistics["panda"].action
    scaled = {
        name: tuple(1000.0 * value if dim == 2 else value for dim, value in enumerate(values))
        for name, values in (("q01", part.q01), ("q99", part.q99))
    }
    wrong = dataclasses.replace(statistics["panda"], action=dataclasses.replace(part, **scaled))
    with pytest.raises(ConfigError, match=r"dz of robot 'panda' spans 2000 in these shards, 2 where"):
        check_ranges(binning(), statistics | {"panda": wrong})


def test_a_chunk_that_cannot_be_written_is_a_bad_sample(recipe: Recipe) -> None:
    raw = robot_sample(0)
    action = raw.segments[-1]
    assert isinstance(action, Action)
    wrong = dataclasses.replace(raw, segments=(dataclasses.replace(action, values=action.values * np.nan),))
    with pytest.raises(BadSampleError, match="holds NaN or infinity"):
        make(recipe, wrong)
    with pytest.raises(BadSampleError, match=raw.key):
        recipe.codes.encode(raw.key, wrong.segments[0])


def test_the_first_layers_alone_are_written_and_read(tmp_path: Path) -> None:
    raw = robot_sample(0)
    whole, coarse = (
        make_recipe(vocab=768, answer=Answer.codes, codec=with_layers(omnisat(), layers)) for layers in (0, 1)
    )
    assert coarse.codes.digest != whole.codes.digest
    # A position and a gripper.
    assert [len(chunks_of(one, raw)[0]) for one in (whole, coarse)] == [4, 2]
    coarse.save(tmp_path)
    loaded = Recipe.load(tmp_path)
    assert_same(make(loaded, raw), make(coarse, raw))
    (written,) = chunks_of(loaded, raw)
    assert loaded.codes.decode("sawyer", loaded.codes.ids.codes(written)).shape == (8, 4)


def test_layers_of_what_has_none_are_refused() -> None:
    assert with_layers(binning(), 0).kind == "binning"
    with pytest.raises(ConfigError, match=r"action\.layers=2: a binning tokenizer has no layers"):
        with_layers(binning(), 2)
