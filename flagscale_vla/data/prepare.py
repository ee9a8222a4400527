"""What must be known of a folder of shards before training: its tokenizer, its index and its robots' statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from flagscale_vla.action.vocabulary import added_tokens
from flagscale_vla.config.data import ActionConfig, DataConfig
from flagscale_vla.data.codes import Tokenizers, check_ranges, open_action_tokenizer
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.index import Index, open_index
from flagscale_vla.data.kept import find_shards, keep, kept_path
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.tar import BrokenTarError, group_members, walk_tar
from flagscale_vla.data.tokenizer import fit_tokenizer, load_tokenizer, read_tokenizer
from flagscale_vla.records import Action, RawSample, State, Text
from flagscale_vla.robots.embodiments import FILE_NAME, Embodiment, load_embodiments

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
    folder = Path(data.shards)
    codec = open_action_tokenizer(action)
    added = added_tokens(codec.num_codes if codec else 0, action.ids)
    recipe = Recipe(
        tokenizers=Tokenizers(text=open_tokenizer(data, vocab, added), actions=codec),
        embodiments=open_embodiments(folder),
        statistics={},
        image=data.image,
        action=action,
        width=width,
        system_prompt=data.system_prompt,
    )
    index = open_index(folder, "train", recipe, processes=data.workers)
    logger.info("%s: %d samples, %d tokens", folder, len(index), index.lengths.sum())
    if codec is not None:
        check_ranges(codec, index.statistics)
    return recipe.with_statistics(index.statistics), index


def open_embodiments(folder: Path) -> dict[str, Embodiment]:
    """The robots of the shards; none where the shards hold only text and pictures.

    Raises:
        ValueError: the file that describes them is missing though the first sample has a robot's state or action.
    """
    if (folder / FILE_NAME).is_file():
        return load_embodiments(folder)
    first = next(read_samples(folder), None)
    if first is not None and any(isinstance(segment, State | Action) for segment in first.segments):
        raise ValueError(f"{folder / FILE_NAME} is missing, and {first.key} needs it. Was the recording cut short?")
    return {}


def open_tokenizer(data: DataConfig, vocab: int, added: tuple[str, ...]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, or one fitted on the training shards' text, with the tokens `added`.

    Raises:
        ConfigError: it has more ids than `vocab`, or there is no such file.
    """
    if data.tokenizer != FIT:
        return load_tokenizer(Path(data.tokenizer), vocab, added)
    folder = Path(data.shards)
    path = kept_path(folder, "train", [FIT, FIT_TEXTS, vocab, data.system_prompt, added], ".tokenizer.json")
    if not path.is_file():
        # Twice, because the fit merges nothing that occurs once, and these are in every sample.
        template = 2 * [*ROLES, data.system_prompt]
        texts = [*template, *islice(read_texts(folder), FIT_TEXTS)]
        keep(path, fit_tokenizer(texts, vocab, added).to_str().encode())
    return read_tokenizer(path)


def read_texts(folder: Path) -> Iterator[str]:
    """All text of the training shards, in order."""
    for raw in read_samples(folder):
        yield from (segment.text for segment in raw.segments if isinstance(segment, Text))


def read_samples(folder: Path) -> Iterator[RawSample]:
    """The training shards' samples in order. What cannot be read is left to the index, which quarantines it."""
    for shard in find_shards(folder, "train"):
        content = shard.read_bytes()
        try:
            for group in group_members(walk_tar(content, whole=True)):
                try:
                    yield parse_sample(shard.name, group, content)
                except BadSampleError:
                    continue
        except BrokenTarError:
            continue
