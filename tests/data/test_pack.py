"""Packs: nothing is lost, nothing leaks, and every kind of input is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flagscale_vla.data.pack import NOWHERE
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.records import RawSample
from tests.samples import (
    interleaved_sample,
    make_batch,
    make_recipe,
    mixed_samples,
    picture_sample,
    robot_sample,
    text_sample,
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe()


RAWS = [robot_sample(0), text_sample(1, 40), picture_sample(2, 30), interleaved_sample(3), robot_sample(4)]


def test_a_pack_is_its_samples_end_to_end(recipe: Recipe) -> None:
    samples = [recipe.sample(raw, seed=0, epoch=0, augment=False) for raw in RAWS]
    batch = recipe.pack(samples, 2048)
    lengths = [sample.tokens.numel() for sample in samples]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    assert batch.cu_seqlens.tolist() == [*starts.tolist(), 2048]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.num_tokens == sum(lengths)
    assert batch.keys == tuple(raw.key for raw in RAWS)
    for name in ("pixels", "frames", "grid", "actions", "action_valid", "noise", "time", "states"):
        parts = [object.__getattribute__(sample, name) for sample in samples]
        assert torch.equal(object.__getattribute__(batch, name), torch.cat(parts)), name
    for sample, start in zip(samples, starts, strict=False):
        span = slice(start, start + sample.tokens.numel())
        assert torch.equal(batch.tokens[span], sample.tokens)
        assert torch.equal(batch.labels[span], sample.labels)
        assert torch.equal(batch.positions[:, span], sample.positions)
    assert torch.equal(batch.image_slots, (batch.tokens == recipe.vocabulary.image_pad).nonzero()[:, 0])
    assert torch.equal(batch.state_slots, (batch.tokens == recipe.vocabulary.state_pad).nonzero()[:, 0])
    placeholders = torch.isin(batch.tokens, torch.tensor([recipe.vocabulary.action_pad, recipe.vocabulary.action_pass]))
    assert torch.equal(batch.action_slots.flatten(), placeholders.nonzero()[:, 0])


def test_counts_are_those_of_the_tensors(recipe: Recipe) -> None:
    batch = make_batch(recipe, RAWS, 2048)
    assert batch.num_labels == (batch.labels != -100).sum()
    assert batch.num_action_values == batch.action_valid.sum() > 0


def test_no_label_crosses_a_sample_and_positions_restart(recipe: Recipe) -> None:
    batch = make_batch(recipe, RAWS, 2048)
    assert (batch.labels[batch.cu_seqlens[1:].long() - 1] == -100).all()
    assert (batch.positions[:, batch.cu_seqlens[:-1].long()] == 0).all()


def test_the_padding_is_a_document_without_labels(recipe: Recipe) -> None:
    batch = make_batch(recipe, RAWS[:2], 1024)
    rest = slice(batch.num_tokens, None)
    assert (batch.tokens[rest] == recipe.vocabulary.pad).all()
    assert (batch.labels[rest] == -100).all()
    assert torch.equal(batch.positions[:, rest], torch.arange(1024 - batch.num_tokens).expand(3, -1))


def test_a_full_row_has_no_padding_document(recipe: Recipe) -> None:
    length = recipe.length(RAWS[0])
    batch = make_batch(recipe, RAWS[:1], length)
    assert batch.cu_seqlens.tolist() == [0, length]
    assert batch.tokens.shape == (length,)


@pytest.mark.parametrize(
    ("raws", "lacking"),
    [
        ([text_sample(0, 20)], "images states actions"),
        ([picture_sample(0, 20)], "states actions"),
        (RAWS, ""),
        ([], "all"),
    ],
)
def test_what_a_pack_lacks_is_a_dummy_without_loss(recipe: Recipe, raws: list[RawSample], lacking: str) -> None:
    batch = make_batch(recipe, raws, 2048)
    if lacking in ("images states actions", "all"):
        assert batch.grid.tolist() == [[1, 2, 2]]
        assert batch.pixels.shape == (28 * 28 * 3,)
        assert batch.frames.tolist() == [1]
        assert batch.image_slots.tolist() == [NOWHERE]
    if lacking:
        assert batch.actions.shape == batch.action_valid.shape == batch.noise.shape == (1, 8, 8)
        assert batch.time.tolist() == [0.0]
        assert (batch.action_slots == NOWHERE).all()
        assert batch.state_slots.tolist() == [NOWHERE]
        assert batch.num_action_values == 0
        for tensor in (batch.actions, batch.noise, batch.states, batch.action_valid):
            assert not tensor.any()
    else:
        assert (batch.action_slots >= 0).all()


def test_an_empty_pack_is_all_padding(recipe: Recipe) -> None:
    batch = recipe.pack([], 64)
    assert batch.cu_seqlens.tolist() == [0, 64]
    assert batch.keys == ()
    assert (batch.num_tokens, batch.num_labels) == (0, 0)


def test_too_much_for_a_row_is_refused_by_name(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"'robot-00000'.*do not fit into a row of 64"):
        make_batch(recipe, RAWS[:1], 64)


def test_a_seeded_mixture_has_every_kind_in_the_asked_lengths(recipe: Recipe) -> None:
    raws = mixed_samples(0, 60)
    lengths = [recipe.length(raw) for raw in raws]
    assert {raw.key.split("-")[0] for raw in raws} == {"robot", "text", "picture"}
    assert min(lengths) >= 40
    assert 400 < max(lengths) <= 600
    assert [recipe.length(raw) for raw in mixed_samples(0, 60)] == lengths
