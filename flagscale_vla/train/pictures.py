"""What the model saw of a sample, read back from the packed row it was given, never from the shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flagscale_vla.action.vocabulary import Vocabulary
from flagscale_vla.config.data import Answer
from flagscale_vla.config.image import TOKEN_PIXELS
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.pictures import first_frames
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.sources import find_sample
from flagscale_vla.records import PackedBatch

CODES = "codes"
"""Kind of a run of tokens that are codes; of a placeholder's it is the placeholder, of words' it is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of a sample's text."""

    text: str
    supervised: bool
    """whether the model is trained to write it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A chunk of actions in the robot's own units."""

    values: NDArray[np.float32]
    """[H, A0]"""
    valid: NDArray[np.bool_]
    """[H]; false where nothing is trained: past the episode's end, or a clean chunk that is only context"""
    names: tuple[str, ...]
    """of the A0 dims"""
    time: float
    """flow time it was noised to; 1 is pure noise, 0 is clean, or read from codes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One sample of a row, for a human's eye."""

    key: str
    spans: tuple[Span, ...]
    images: tuple[NDArray[np.uint8], ...]
    """each [h, w, 3] RGB"""
    chunks: tuple[Chunk, ...]


def sample_views(batch: PackedBatch, feed: Feed) -> Iterator[View]:
    """Every sample of a row on the CPU, one when it is asked for."""
    recipe = feed.recipe
    for number, key in enumerate(batch.keys):
        start, end = batch.cu_seqlens[number : number + 2].tolist()
        yield View(
            key=key,
            spans=tuple(read_text(batch.tokens[start:end], batch.labels[start:end], recipe)),
            images=tuple(read_images(batch, start, end)),
            chunks=tuple(read_chunks(batch, recipe, robot_of(feed, key), start, end)),
        )


def robot_of(feed: Feed, key: str) -> str:
    """The robot of the sample with this key, as rows have it; empty where it has none."""
    source, number = find_sample(feed.sources, key)
    return source.index.robots[number]


def read_text(tokens: Tensor, labels: Tensor, recipe: Recipe) -> Iterator[Span]:
    """Text of tokens i64[T], with each run of one placeholder written once and counted, and codes as their numbers."""
    holders = placeholders(recipe.vocabulary)
    # Labels are shifted by one: a token is supervised where the label before it names it.
    supervised = [False, *(labels[:-1] >= 0).tolist()]
    kinds = [CODES if coded else token if token in holders else None for token, coded in mark_codes(tokens, recipe)]
    triples = zip(kinds, supervised, tokens.tolist(), strict=True)
    for (kind, trained), run in groupby(triples, lambda triple: triple[:2]):
        ids = [token for _, _, token in run]
        if kind == CODES and recipe.codes:
            yield Span(text=spell_codes(recipe.codes.ids.codes(ids)), supervised=trained)
        elif kind is None:
            yield Span(text=recipe.tokenizer.decode(ids, skip_special_tokens=False), supervised=trained)
        else:
            word = recipe.tokenizer.decode(ids[:1], skip_special_tokens=False)
            yield Span(text=f"{word}×{len(ids)}" if len(ids) > 1 else word, supervised=trained)


def mark_codes(tokens: Tensor, recipe: Recipe) -> Iterator[tuple[int, bool]]:
    """Each token with whether it is a code: in the tail of Qwen2.5's vocabulary only those between the markers are."""
    inside = False
    for token in tokens.tolist():
        if token in (recipe.vocabulary.action_start, recipe.vocabulary.action_end):
            inside = token == recipe.vocabulary.action_start
        yield token, inside and recipe.codes is not None and recipe.codes.ids.holds(token)


def spell_codes(codes: NDArray[np.int64]) -> str:
    """Codes i64[K] as a reader wants to see them."""
    return f"[{len(codes)} codes: {' '.join(map(str, codes.tolist()))}]"


def placeholders(vocabulary: Vocabulary) -> frozenset[int]:
    """Ids that stand where something other than a word goes."""
    seen = {vocabulary.image_pad, vocabulary.video_pad}
    return frozenset(seen | {vocabulary.state_pad, vocabulary.action_pad, vocabulary.action_pass})


def read_images(batch: PackedBatch, start: int, end: int) -> Iterator[NDArray[np.uint8]]:
    """The pictures placed in tokens [start, end) of a row, each u8[h, w, 3]; of a film every other frame."""
    place = 0
    for picture in first_frames(batch.pixels.numpy(), batch.frames.tolist(), batch.grid.tolist()):
        if start <= int(batch.image_slots[place]) < end:
            yield picture
        place += picture.size // (3 * TOKEN_PIXELS)


def read_chunks(batch: PackedBatch, recipe: Recipe, robot: str, start: int, end: int) -> Iterator[Chunk]:
    """The chunks of actions placed in tokens [start, end) of a row, or, where there are codes alone, written there."""
    for number, slot in enumerate(batch.action_slots[:, 0].tolist()):
        if start <= slot < end:
            yield Chunk(
                values=recipe.action_values(robot, batch.actions[number].numpy()),
                valid=batch.action_valid[number].any(dim=1).numpy(),
                names=recipe.embodiments[robot].action,
                time=float(batch.time[number]),
            )
    if recipe.codes and recipe.action.answer is Answer.codes:
        for place, codes in read_codes(batch.tokens[start:end], recipe):
            values = recipe.codes.decode(robot, codes, read_state(batch, recipe, robot, start, start + place))
            valid = np.ones(len(values), np.bool_)
            yield Chunk(values=values, valid=valid, names=recipe.embodiments[robot].action, time=0.0)


def read_codes(tokens: Tensor, recipe: Recipe) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Where each string of codes i64[K] begins in tokens i64[T], and the string."""
    assert recipe.codes is not None
    for coded, run in groupby(enumerate(mark_codes(tokens, recipe)), lambda entry: entry[1][1]):
        if coded:
            places, pairs = zip(*run, strict=True)
            yield places[0], recipe.codes.ids.codes([token for token, _ in pairs])


def read_state(batch: PackedBatch, recipe: Recipe, robot: str, start: int, end: int) -> NDArray[np.float32] | None:
    """The last state f32[S0] placed in tokens [start, end) of a row, in the robot's own units; None where none is."""
    found = [number for number, slot in enumerate(batch.state_slots.tolist()) if start <= slot < end]
    return recipe.state_values(robot, batch.states[found[-1]].numpy()) if found else None
