"""What must be known of a folder of shards before training: its tokenizer, its index and its robots' statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from flagscale_vla.action.vocabulary import added_tokens
from flagscale_vla.config.data import ActionConfig, DataConfig
from flagscale_vla.data.codes import Tokenizers, check_ranges, open_action_tokenizer
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.index import Index, open_index
from flagscale_vla.data.kept import kept_name
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.store import Store, find_shards, open_store
from flagscale_vla.data.tar import BrokenTarError, group_members, walk_tar
from flagscale_vla.data.tokenizer import fit_tokenizer, load_tokenizer, read_tokenizer
from flagscale_vla.records import Action, RawSample, State, Text
from flagscale_vla.robots.embodiments import FILE_NAME, Embodiment, read_embodiments

logger = logging.getLogger(__name__)

FIT = "fit"
FIT_TEXTS = 200_000
"""Texts a tokenizer is fitted on at most, the first of the shards."""
ROLES = ("system\n", "user\n", "assistant\n")
"""Text of every conversation that is in no sample."""


def open_train_data(data: DataConfig, action: ActionConfig, *, width: int, vocab: int) -> tuple[Recipe, Index]:
    """The recipe of a run and the index of its training shards; both found once and kept beside the shards.

    One process should call this before the others do: it builds what they then only read.

    Args:
        data: names the shards and the tokenizer.
        action: how a chunk is made.
        width: A, `model.flow.width`.
        vocab: rows of the embedding, `model.language.vocab`.

    Raises:
        ConfigError: the action tokenizer or the vocabulary does not go with the rest.
        ValueError: there are no shards, or a file is missing, broken or cannot be written.
    """
    store = open_store(data.shards, data.cache)
    recipe = open_recipe(store, data, action, width=width, vocab=vocab)
    index = open_index(store, "train", recipe, processes=data.workers)
    logger.info("%s: %d samples, %d tokens", store.url, len(index), index.lengths.sum())
    if recipe.tokenizers.actions is not None:
        check_ranges(recipe.tokenizers.actions, index.statistics)
    return recipe.with_statistics(index.statistics), index


def open_recipe(store: Store, data: DataConfig, action: ActionConfig, *, width: int, vocab: int) -> Recipe:
    """The recipe of a run without statistics, which an index of its shards gives.

    Args and errors as `open_train_data`.
    """
    codec = open_action_tokenizer(action)
    added = added_tokens(codec.num_codes if codec else 0, action.ids)
    return Recipe(
        tokenizers=Tokenizers(text=open_tokenizer(store, data, vocab, added), actions=codec),
        embodiments=open_embodiments(store),
        statistics={},
        image=data.image,
        action=action,
        width=width,
        system_prompt=data.system_prompt,
    )


def open_embodiments(store: Store) -> dict[str, Embodiment]:
    """The robots of the shards; none where the shards hold only text and pictures.

    Raises:
        ValueError: the file that describes them is missing though the first sample has a robot's state or action.
    """
    path = f"{store.url}/{FILE_NAME}"
    if (content := store.find(FILE_NAME)) is not None:
        return read_embodiments(content, path)
    first = next(read_samples(store), None)
    if first is not None and any(isinstance(segment, State | Action) for segment in first.segments):
        raise ValueError(f"{path} is missing, and {first.key} needs it. Was the recording cut short?")
    return {}


def open_tokenizer(store: Store, data: DataConfig, vocab: int, added: tuple[str, ...]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, or one fitted on the training shards' text, with the tokens `added`.

    Raises:
        ConfigError: it has more ids than `vocab`, or there is no such file.
    """
    if data.tokenizer != FIT:
        return load_tokenizer(Path(data.tokenizer), vocab, added)
    stamps = store.stamps(find_shards(store, "train"))
    name = kept_name("train", stamps, [FIT, FIT_TEXTS, vocab, data.system_prompt, added], ".tokenizer.json")
    if path := store.kept.find(name):
        return read_tokenizer(path)
    with store.kept.alone():
        if path := store.kept.find(name):
            return read_tokenizer(path)
        # Twice, because the fit merges nothing that occurs once, and these are in every sample.
        template = 2 * [*ROLES, data.system_prompt]
        texts = [*template, *islice(read_texts(store), FIT_TEXTS)]
        return read_tokenizer(store.kept.write(name, fit_tokenizer(texts, vocab, added).to_str().encode()))


def read_texts(store: Store) -> Iterator[str]:
    """All text of the training shards, in order."""
    for raw in read_samples(store):
        yield from (segment.text for segment in raw.segments if isinstance(segment, Text))


def read_samples(store: Store) -> Iterator[RawSample]:
    """The training shards' samples in order. What cannot be read is left to the index, which quarantines it."""
    for shard in find_shards(store, "train"):
        with store.whole(shard) as buffer, suppress(BrokenTarError):
            for group in group_members(walk_tar(buffer, whole=True)):
                with suppress(BadSampleError):
                    yield parse_sample(shard, group, buffer)
