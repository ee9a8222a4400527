"""The loader: exact order, exact resume on any number of ranks, and bad samples that stop nothing but their budget."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from flagscale_vla.data.faults import Quarantine, load_faults
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.index import build_index
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.rooms import TOKEN_BYTES
from flagscale_vla.data.shards import ShardWriter
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import Image, PackedBatch, RawSample
from tests.samples import make_feed, make_recipe, mixed_samples, robot_sample, text_sample, write_shards

RAWS = mixed_samples(0, 60, longest=300)
LENGTH = 512


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, RAWS, max_bytes=50_000)
    return open_feed(folder)


def open_feed(folder: Path) -> Feed:
    recipe = make_recipe(shift_pixels=2)
    index = build_index(LocalStore(folder), "train", recipe)
    return make_feed(index, recipe.with_statistics(index.statistics), LENGTH, seed=3, augment=True)


FIELDS = [field.name for field in dataclasses.fields(PackedBatch) if field.type == "Tensor"]


@contextmanager
def opened(
    feed: Feed,
    *,
    rank: int = 0,
    size: int = 1,
    position: Position | None = None,
    workers: int = 0,
    bad_share: float = 0.0,
    shard_share: float = 1.0,
) -> Iterator[Loader]:
    with Loader(
        feed,
        dp_rank=rank,
        dp_size=size,
        position=position or Position(),
        workers=workers,
        pin=False,
        quarantine=Quarantine(Path(feed.sources[0].index.store.url) / "quarantine.jsonl", bad_share, shard_share),
    ) as loader:
        yield loader


def take(feed: Feed, count: int, **place: object) -> list[PackedBatch]:
    with opened(feed, **place) as loader:  # type: ignore[arg-type]
        return loader.take(count)


def assert_same(first: list[PackedBatch], second: list[PackedBatch]) -> None:
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        for field in dataclasses.fields(PackedBatch):
            a, b = (object.__getattribute__(batch, field.name) for batch in (ours, theirs))
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_an_epoch_gives_each_sample_once(feed: Feed) -> None:
    with opened(feed) as loader:
        keys: list[str] = []
        while len(keys) < len(RAWS):
            keys += [key for batch in loader.take(1) for key in batch.keys]
        assert sorted(key.split("/")[1] for key in keys) == sorted(raw.key for raw in RAWS)
        assert loader.samples == len(RAWS)
        assert loader.tokens == feed.sources[0].index.lengths.sum()


def test_epochs_differ_in_order_and_noise(feed: Feed) -> None:
    batches = take(feed, 60)
    keys = [key for batch in batches for key in batch.keys]
    assert keys[: len(RAWS)] != keys[len(RAWS) : 2 * len(RAWS)]
    again = [batch for batch in batches if "robot" in "".join(batch.keys)]
    times = torch.cat([batch.time for batch in again]).tolist()
    assert len(set(times) - {0.0}) > sum("robot" in raw.key for raw in RAWS)


@pytest.mark.parametrize("size", [2, 4])
def test_every_number_of_ranks_reads_the_same_packs(feed: Feed, size: int) -> None:
    alone = take(feed, 16)
    ranks = [take(feed, 16 // size, rank=rank, size=size) for rank in range(size)]
    assert_same([ranks[number % size][number // size] for number in range(16)], alone)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_a_resumed_run_reads_what_an_unbroken_one_would(feed: Feed, first: int, second: int) -> None:
    unbroken = take(feed, 24)
    with opened(feed, size=first) as loader:
        loader.take(12 // first)
        position = loader.position
    assert position.packs == 12
    resumed = [take(feed, 12 // second, rank=rank, size=second, position=position) for rank in range(second)]
    assert_same([resumed[number % second][number // second] for number in range(12)], unbroken[12:])


def test_workers_read_the_same_in_the_same_order(feed: Feed) -> None:
    here = take(feed, 12, position=Position(packs=5))
    assert_same(take(feed, 12, position=Position(packs=5), workers=2), here)


def test_a_row_keeps_nothing_that_a_worker_writes_over(feed: Feed) -> None:
    """Twenty rows are held at once, three times as many as there are rooms; some lie in rooms, the others elsewhere."""
    held = take(feed, 20, workers=1)
    assert_same(held, take(feed, 20))
    sizes = [{object.__getattribute__(batch, name).untyped_storage().nbytes() for name in FIELDS} for batch in held]
    assert sizes[:2] == [{LENGTH * TOKEN_BYTES}] * 2
    assert all(max(own) < LENGTH * TOKEN_BYTES for own in sizes[2:])


def test_a_closed_loader_gives_nothing(feed: Feed) -> None:
    with opened(feed) as loader:
        loader.take(1)
    with pytest.raises(ValueError, match="is closed"):
        loader.take(1)


def test_reading_needs_no_megatron() -> None:
    import subprocess

    code = "import sys, flagscale_vla.data.loader; print([m for m in sys.modules if m.startswith('megatron')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def damaged(raw: RawSample) -> RawSample:
    """A sample whose first picture has a whole header and half of its bytes."""
    image = raw.segments[0]
    assert isinstance(image, Image)
    half = dataclasses.replace(image, encoded=image.encoded[: len(image.encoded) * 2 // 3])
    return dataclasses.replace(raw, segments=(half, *raw.segments[1:]))


def write_damaged(folder: Path, count: int) -> None:
    write_shards(folder, [robot_sample(seed) for seed in range(20)])
    with ShardWriter(folder, "train", max_bytes=1 << 30, first=100) as writer:
        for seed in range(100, 100 + count):
            raw = damaged(robot_sample(seed))
            writer.write(raw.key, raw.segments, {})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_quarantined_where_it_is_read(tmp_path: Path, workers: int) -> None:
    write_damaged(tmp_path, 1)
    feed = open_feed(tmp_path)
    assert len(feed.sources[0].index) == 21
    with opened(feed, workers=workers, bad_share=0.05) as loader:
        while loader.samples < 20:
            loader.take(1)
        while loader.quarantined < 1:
            loader.take(1)
    (fault,) = load_faults(tmp_path / "quarantine.jsonl")
    assert (fault.shard, fault.member) == ("train-000100.tar", "robot-00100.front.jpg")
    assert "cannot be decoded" in fault.reason


def test_too_many_bad_pictures_stop_the_run(tmp_path: Path) -> None:
    write_damaged(tmp_path, 4)
    with opened(open_feed(tmp_path), bad_share=0.02) as loader:
        with pytest.raises(
            ValueError, match=r"samples read are bad, past data\.max_bad_share=0\.02: train-000100\.tar/robot"
        ):
            loader.take(30)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_shard_among_good_ones_stops_the_run(tmp_path: Path, workers: int) -> None:
    write_damaged(tmp_path, 20)
    with opened(open_feed(tmp_path), workers=workers, bad_share=1.0, shard_share=0.2) as loader:
        with pytest.raises(
            ValueError,
            match=r"samples read of train-000100\.tar are bad, past data\.max_bad_shard_share=0\.2: train-000100",
        ):
            loader.take(30)


def test_packs_stay_in_place_around_a_bad_sample(tmp_path: Path) -> None:
    write_damaged(tmp_path, 1)
    feed = open_feed(tmp_path)
    with opened(feed, bad_share=1.0) as loader:
        alone = loader.take(8)
    halves = []
    for rank in range(2):
        with opened(feed, rank=rank, size=2, bad_share=1.0) as loader:
            halves.append(loader.take(4))
    assert_same([halves[number % 2][number // 2] for number in range(8)], alone)


def test_samples_longer_than_a_row_count_as_bad(feed: Feed) -> None:
    short = dataclasses.replace(feed, pack_length=150)
    with pytest.raises(ValueError, match=r"samples indexed are bad.*data\.pack_length=150 is shorter"), opened(short):
        pass
    with opened(short, bad_share=1.0) as loader:
        assert loader.quarantined == (feed.sources[0].index.lengths > 150).sum()
        assert all(batch.num_tokens <= 150 for batch in loader.take(4))
    none = dataclasses.replace(feed, pack_length=8)
    with pytest.raises(ValueError, match="holds no usable sample"), opened(none, bad_share=1.0):
        pass


def test_a_text_that_became_longer_after_indexing_is_quarantined(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [text_sample(number, 200) for number in range(20)], max_bytes=10_000_000)
    feed = open_feed(tmp_path)
    content = shard.read_bytes()
    word = b"window"
    assert word in content[: len(content) // 20]
    # As many bytes, of letters that no word of the vocabulary holds: a token each.
    shard.write_bytes(content.replace(word, b"ZQXJZQ", 30))
    with opened(feed, bad_share=1.0) as loader:
        batches = loader.take(9)
        assert loader.quarantined > 0
    assert sum(len(batch.keys) for batch in batches) + loader.quarantined >= len(batches)
    (reason, *_) = [fault.reason for fault in load_faults(tmp_path / "quarantine.jsonl")]
    assert re.fullmatch(r"has \d+ tokens, but had \d+ when it was indexed", reason)
