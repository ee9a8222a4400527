"""Items of a source: whole samples, and pieces of long conversations that fit into a row."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.data.index import Index, build_index
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.sources import Piece, Source, find_faults, find_sample, open_items
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import RawSample, Text
from tests.samples import interleaved_sample, make_recipe, picture_sample, robot_sample, text_sample, write_shards


def conversation(seed: int, turns: int, words: int) -> RawSample:
    """Question and answer, again and again, each of about `words` tokens, after a picture."""
    picture = picture_sample(seed, 4).segments[0]
    rounds = [text_sample(1000 * seed + turn, words).segments for turn in range(turns)]
    return RawSample(key=f"talk-{seed:05d}", segments=(picture, *(segment for part in rounds for segment in part)))


RAWS = [text_sample(1, 20), conversation(2, 7, 40), robot_sample(3), conversation(4, 3, 150), interleaved_sample(5, 4)]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Source:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, RAWS)
    return Source(name="talks", index=build_index(LocalStore(folder), "train", recipe))


def test_long_samples_are_refused_and_listed(source: Source) -> None:
    items = open_items(source, 128, split=False)
    fits = np.flatnonzero(source.index.lengths <= 128)
    assert 0 < len(fits) < len(RAWS)
    assert items.samples.tolist() == fits.tolist()
    assert len(items.faults) == len(RAWS) - len(fits)
    assert all(fault.shard == "talks/train-000000.tar" for fault in items.faults)
    assert all(items.piece(item) is None for item in range(len(fits)))


@pytest.mark.parametrize("capacity", [128, 200, 300])
def test_a_piece_has_the_tokens_that_the_recipe_makes_of_it(source: Source, recipe: Recipe, capacity: int) -> None:
    items = open_items(source, capacity, split=True)
    assert items.pieces
    for item, (sample, length) in enumerate(zip(items.samples.tolist(), items.lengths.tolist(), strict=True)):
        piece = items.piece(item)
        raw = piece.of(RAWS[sample]) if piece else RAWS[sample]
        assert length == recipe.length(raw) <= capacity
        assert raw.key == (f"{RAWS[sample].key}#{piece.number}" if piece else RAWS[sample].key)


def test_pieces_cover_a_conversation_once_and_each_begins_with_the_user(source: Source) -> None:
    items = open_items(source, 200, split=True)
    pieces = [piece for item, sample in enumerate(items.samples) if sample == 1 and (piece := items.piece(item))]
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert len(pieces) > 1
    assert [segment for piece in pieces for segment in piece.of(RAWS[1]).segments] == list(RAWS[1].segments)
    for piece in pieces[1:]:
        first = piece.of(RAWS[1]).segments[0]
        assert isinstance(first, Text)
        assert not first.supervised


def test_a_piece_takes_as_many_turns_as_fit(source: Source, recipe: Recipe) -> None:
    items = open_items(source, 200, split=True)
    pieces = [piece for item, sample in enumerate(items.samples) if sample == 1 and (piece := items.piece(item))]
    for piece, following in pairwise(pieces):
        longer = Piece(0, piece.begin, following.begin + 2)
        assert recipe.length(longer.of(RAWS[1])) > 200


def test_a_turn_that_does_not_fit_by_itself_is_refused_and_the_rest_is_kept(source: Source) -> None:
    items = open_items(source, 128, split=True)
    refused = [fault for fault in items.faults if fault.member.startswith("talk-00004")]
    assert [fault.member for fault in refused] == ["talk-00004#0", "talk-00004#1", "talk-00004#2"]
    assert "one turn and its answer have" in refused[0].reason
    assert "data.pack_length=128 is shorter" in refused[0].reason
    assert 3 not in items.samples
    assert 1 in items.samples


def test_a_sample_is_found_by_the_key_it_has_in_a_row(source: Source) -> None:
    alone = Source(name="", index=source.index)
    assert find_sample((alone,), "train-000000.tar/robot-00003") == (alone, 2)
    assert find_sample((alone, source), "talks/train-000000.tar/talk-00002#4") == (source, 1)
    with pytest.raises(LookupError, match="there is no sample"):
        find_sample((source,), "train-000000.tar/robot-00003")


def test_faults_of_an_index_name_the_source(tmp_path: Path, recipe: Recipe) -> None:
    write_shards(tmp_path, RAWS)
    (tmp_path / "train-000001.tar").write_bytes(b"")
    index: Index = build_index(LocalStore(tmp_path), "train", recipe)
    assert [fault.shard for fault in find_faults(Source(name="a", index=index))] == ["a/train-000001.tar"]
    assert [fault.shard for fault in find_faults(Source(name="", index=index))] == ["train-000001.tar"]
