"""What must be known of shards before training: the tokenizer, an index of each source, the robots' statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from flagscale_vla.action.vocabulary import added_tokens
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import ActionConfig, DataConfig
from flagscale_vla.data.codes import Tokenizers, check_ranges, open_action_tokenizer
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.gather import join
from flagscale_vla.data.index import open_index
from flagscale_vla.data.kept import kept_name
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.sources import Source
from flagscale_vla.data.store import Store, find_shards, open_store
from flagscale_vla.data.tar import BrokenTarError, group_members, walk_tar
from flagscale_vla.data.tokenizer import fit_tokenizer, load_tokenizer, read_tokenizer
from flagscale_vla.records import Action, RawSample, State, Text
from flagscale_vla.robots.embodiments import FILE_NAME, Embodiment, read_embodiments
from flagscale_vla.robots.statistics import find_constants

logger = logging.getLogger(__name__)

FIT = "fit"
FIT_TEXTS = 200_000
"""Texts a tokenizer is fitted on at most, the first of the shards; of several sources equally many."""
ROLES = ("system\n", "user\n", "assistant\n")
"""Text of every conversation that is in no sample."""


def open_train_data(
    data: DataConfig, action: ActionConfig, *, width: int, vocab: int
) -> tuple[Recipe, tuple[Source, ...]]:
    """The recipe of a run and the sources of its training shards, by name; all found once and kept beside the shards.

    One process should call this before the others do: it builds what they then only read.

    Args:
        data: names the shards and the tokenizer.
        action: how a chunk is made.
        width: A, `model.flow.width`.
        vocab: rows of the embedding, `model.language.vocab`.

    Raises:
        ConfigError: the action tokenizer, the vocabulary or a source's robots do not go with the rest.
        ValueError: there are no shards, or a file is missing, broken or cannot be written.
    """
    stores = open_stores(data)
    recipe = open_recipe(stores, data, action, width=width, vocab=vocab)
    sources = tuple(
        Source(name=name, index=open_index(store, "train", recipe, processes=data.workers))
        for name, store in stores.items()
    )
    for source in sources:
        index = source.index
        logger.info("%s: %d samples, %d tokens", index.store.url, len(index), index.lengths.sum())
    statistics = join(source.index.gatherers for source in sources)
    for robot, kind, names in find_constants(statistics, recipe.embodiments):
        logger.warning("robot %s: its %s hardly changes in %s, which is not scaled", robot, kind, ", ".join(names))
    if recipe.tokenizers.actions is not None:
        check_ranges(recipe.tokenizers.actions, statistics)
    return recipe.with_statistics(statistics), sources


def open_recipe(
    stores: Mapping[str, Store], data: DataConfig, action: ActionConfig, *, width: int, vocab: int
) -> Recipe:
    """The recipe of a run without statistics, which indices of its shards give; `stores` as `open_stores` gives them.

    Args and errors as `open_train_data`.
    """
    codec = open_action_tokenizer(action)
    added = added_tokens(codec.num_codes if codec else 0, action.ids)
    return Recipe(
        tokenizers=Tokenizers(text=open_tokenizer(stores, data, vocab, added), actions=codec),
        embodiments=join_embodiments(stores),
        statistics={},
        image=data.image,
        action=action,
        width=width,
        system_prompt=data.system_prompt,
    )


def open_stores(data: DataConfig) -> dict[str, Store]:
    """Where the shards of each source lie, by name; the name of a source that is alone is empty."""
    if not data.mixture:
        return {"": open_store(data.shards, data.cache)}
    return {name: open_store(data.mixture[name].shards, data.cache) for name in sorted(data.mixture)}


def join_embodiments(stores: Mapping[str, Store]) -> dict[str, Embodiment]:
    """The robots of all sources.

    Raises:
        ConfigError: two sources have different robots of one name.
        ValueError: as `open_embodiments`.
    """
    robots: dict[str, Embodiment] = {}
    for source, store in stores.items():
        for name, robot in open_embodiments(store).items():
            if robots.setdefault(name, robot) != robot:
                raise ConfigError(
                    f"data.mixture.{source}.shards={store.url}: its robot {name!r} is not the one of that name in a "
                    f"source before it. This would pass: shards in whose {FILE_NAME} the robots are the same"
                )
    return robots


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


def open_tokenizer(stores: Mapping[str, Store], data: DataConfig, vocab: int, added: tuple[str, ...]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, or one fitted on the training shards' text, with the tokens `added`.

    Raises:
        ConfigError: it has more ids than `vocab`, or there is no such file.
    """
    if data.tokenizer != FIT:
        return load_tokenizer(Path(data.tokenizer), vocab, added)
    # Kept beside the shards of the first source.
    first = next(iter(stores.values()))
    stamps = [stamp for store in stores.values() for stamp in store.stamps(find_shards(store, "train"))]
    name = kept_name("train", stamps, [FIT, FIT_TEXTS, vocab, data.system_prompt, added], ".tokenizer.json")
    if path := first.kept.find(name):
        return read_tokenizer(path)
    with first.kept.alone():
        if path := first.kept.find(name):
            return read_tokenizer(path)
        # Twice, because the fit merges nothing that occurs once, and these are in every sample.
        template = 2 * [*ROLES, data.system_prompt]
        share = FIT_TEXTS // len(stores)
        own = (text for store in stores.values() for text in islice(read_texts(store), share))
        texts = [*template, *own]
        return read_tokenizer(first.kept.write(name, fit_tokenizer(texts, vocab, added).to_str().encode()))


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
