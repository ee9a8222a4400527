"""A mixture of folders of shards from its settings to packed rows: order, counts, changes of ranks and workers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import CacheConfig, DataConfig
from flagscale_vla.config.mixture import OrderConfig, SourceConfig, StageConfig, TooLong, Weigh
from flagscale_vla.data.faults import Quarantine, load_faults
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.index import build_index, open_index
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.prepare import open_stores, open_train_data
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import PackedBatch
from flagscale_vla.robots.embodiments import Embodiment, save_embodiments
from tests.data.test_sources import conversation
from tests.samples import (
    action_config,
    image_config,
    made_up_index,
    make_feed,
    make_recipe,
    order_config,
    robot_sample,
    text_sample,
    write_shards,
)

LENGTH = 512
NAMES = {"arm": 60, "long": 12, "text": 9}
"""Samples of each source."""


def mixture(folder: Path, **weights: float) -> dict[str, SourceConfig]:
    return {name: SourceConfig(shards=str(folder / name), weight=weight) for name, weight in weights.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_shards(folder / "arm", [robot_sample(seed) for seed in range(60)], max_bytes=50_000)
    write_shards(folder / "long", [conversation(seed, 4, 60 + 20 * seed) for seed in range(12)])
    write_shards(folder / "text", [text_sample(seed, 40) for seed in range(9)])
    return folder


def open_feed(folder: Path, order: OrderConfig | None = None) -> Feed:
    recipe = make_recipe(shift_pixels=2)
    indices = {name: build_index(LocalStore(folder / name), "train", recipe) for name in NAMES}
    order = order or order_config(mixture=mixture(folder, arm=3, long=1, text=1), era=50, too_long=TooLong.split)
    return make_feed(indices, recipe, LENGTH, seed=5, augment=True, order=order)


@pytest.fixture(scope="module")
def feed(folder: Path) -> Feed:
    return open_feed(folder)


def open_loader(feed: Feed, folder: Path, *, rank: int, size: int, position: Position, workers: int) -> Loader:
    quarantine = Quarantine(folder / f"quarantine-{rank}.jsonl", 1.0, 1.0)
    return Loader(
        feed, dp_rank=rank, dp_size=size, position=position, workers=workers, pin=False, quarantine=quarantine
    )


def read(feed: Feed, folder: Path, count: int, position: Position | None = None) -> list[PackedBatch]:
    with open_loader(feed, folder, rank=0, size=1, position=position or Position(), workers=0) as loader:
        return loader.take(count)


def assert_same(ours: list[PackedBatch], theirs: list[PackedBatch]) -> None:
    assert [batch.keys for batch in ours] == [batch.keys for batch in theirs]
    for first, second in zip(ours, theirs, strict=True):
        for name in ("tokens", "labels", "positions", "pixels", "noise", "time", "actions", "cu_seqlens"):
            assert torch.equal(first.__getattribute__(name), second.__getattribute__(name)), name


def test_ranks_and_workers_may_change_three_times_on_the_way(feed: Feed, tmp_path: Path) -> None:
    """Real rows, real workers: 3 workers on one rank, then 4 ranks, then 6, then 2 with a worker each."""
    taken: list[PackedBatch] = []
    position = Position()
    for size, steps, workers in ((1, 9, 3), (4, 3, 0), (6, 2, 0), (2, 5, 1)):
        ranks = []
        for rank in range(size):
            with open_loader(feed, tmp_path, rank=rank, size=size, position=position, workers=workers) as loader:
                ranks.append([batch for _ in range(steps) for batch in loader.take(1)])
                reached = loader.position
        taken += [ranks[rank][step] for step in range(steps) for rank in range(size)]
        position = reached
    assert position.packs == 43
    assert position.era > 0
    assert_same(taken, read(feed, tmp_path, 43))


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_of_ranks_lose_and_repeat_nothing(feed: Feed, seed: int) -> None:
    """Names of samples alone: every number of ranks there may be, at random places."""
    draw = random.Random(seed)
    unbroken = feed.plan(Position())
    position, taken = Position(), []
    for size in draw.sample([1, 2, 3, 4, 6, 8], 4):
        steps = draw.randrange(1, 40)
        plans = [feed.plan(position) for _ in range(size)]
        taken += [
            feed.orders(plans[rank].row(position.packs + step * size + rank))
            for step in range(steps)
            for rank in range(size)
        ]
        position = plans[-1].position(position.packs + steps * size)
    assert taken == [feed.orders(unbroken.row(number)) for number in range(position.packs)]


def test_a_mixture_names_its_sources_in_keys_and_keeps_pieces_apart(feed: Feed, tmp_path: Path) -> None:
    keys = [key for batch in read(feed, tmp_path, 60) for key in batch.keys]
    counts = Counter(key.split("/")[0] for key in keys)
    assert set(counts) == set(NAMES)
    assert counts["arm"] / len(keys) == pytest.approx(0.6, abs=0.05)
    assert {key.split("/")[0] for key in keys if "#" in key} == {"long"}
    (first, *_) = [key for key in keys if key.startswith("text")]
    assert first.startswith("text/train-000000.tar/text-")


def test_a_source_alone_keeps_the_keys_of_its_samples(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe()
    index = build_index(LocalStore(folder / "text"), "train", recipe)
    (batch, *_) = read(make_feed(index, recipe, LENGTH), tmp_path, 1)
    assert all(key.startswith("train-000000.tar/text-") for key in batch.keys)


def test_counts_of_sources_are_those_of_the_rows(feed: Feed, tmp_path: Path) -> None:
    with open_loader(feed, tmp_path, rank=0, size=1, position=Position(), workers=0) as loader:
        batches = loader.take(40)
        given = loader.given()
    keys = [key for batch in batches for key in batch.keys]
    for name in NAMES:
        own = [key for key in keys if key.startswith(f"{name}/")]
        assert given[name].samples == len(own)
        assert given[name].passes == len(own) / len(feed.items[sorted(NAMES).index(name)].samples)
    assert sum(part.tokens for part in given.values()) == sum(batch.num_tokens for batch in batches)


def test_stages_and_tokens_reach_the_plan(folder: Path) -> None:
    stages = [StageConfig(samples=100, weights={"arm": 0}), StageConfig(samples=0, weights={"long": 0})]
    order = order_config(
        mixture=mixture(folder, arm=1, long=1, text=1),
        stages=stages,
        era=50,
        weigh=Weigh.tokens,
        too_long=TooLong.split,
    )
    feed = open_feed(folder, order)
    parts = [feed.mixture.draw(era) for era in range(4)]
    assert [sorted(set(part.source.tolist())) for part in parts] == [[1, 2], [1, 2], [0, 2], [0, 2]]
    tokens = np.zeros(3)
    for part in parts[:2]:
        for number in range(3):
            tokens[number] += feed.items[number].lengths[part.item[part.source == number]].sum()
    assert abs(tokens[1] - tokens[2]) <= LENGTH


def test_a_run_that_needs_more_passes_than_it_may_is_refused_before_it_starts() -> None:
    feed = make_feed(made_up_index([100] * 1000), make_recipe(), LENGTH, order=order_config(epochs=2))
    feed.check_epochs(steps=97, rows=4)
    with pytest.raises(ConfigError, match=r"steps=98: data\.epochs=2 ends the data after 200000 tokens.*steps=97"):
        feed.check_epochs(steps=98, rows=4)
    assert len(feed.plan(Position()).row(97 * 4 - 1).item) > 0
    make_feed(made_up_index([100]), make_recipe(), LENGTH).check_epochs(steps=10**9, rows=4)


def test_a_loader_at_the_end_of_its_passes_says_so(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe()
    index = build_index(LocalStore(folder / "text"), "train", recipe)
    feed = make_feed(index, recipe, LENGTH, order=order_config(epochs=1))
    with open_loader(feed, tmp_path, rank=0, size=1, position=Position(), workers=1) as loader:
        keys = [key for batch in loader.take(2) for key in batch.keys]
        assert sorted(keys) == [f"train-000000.tar/text-{number:05d}" for number in range(9)]
        with pytest.raises(ValueError, match=r"no more rows after 2: a source was given data\.epochs times"):
            loader.take(1)


def test_a_bad_sample_of_a_mixture_is_listed_with_its_source(folder: Path, tmp_path: Path) -> None:
    feed = open_feed(folder)
    read(replace(feed, recipe=feed.recipe.with_statistics({})), tmp_path, 3)
    faults = load_faults(tmp_path / "quarantine-0.jsonl")[len(feed.faults) :]
    assert faults
    assert all(fault.shard.startswith("arm/train-") and fault.member.startswith("robot-") for fault in faults)


def settings(folder: Path, **weights: float) -> DataConfig:
    order = order_config(mixture=mixture(folder, **weights))
    return DataConfig(
        **{name: order.__getattribute__(name) for name in OrderConfig.__slots__},
        cache=CacheConfig(folder=str(folder / "cache"), max_bytes=1 << 20),
        tokenizer="fit",
        system_prompt="You are a helpful physical assistant.",
        image=image_config(),
        pack_length=1024,
        workers=0,
        max_bad_share=0.0,
        max_bad_shard_share=0.0,
    )


def test_a_mixture_is_opened_from_its_settings(tmp_path: Path) -> None:
    raws = [robot_sample(seed) for seed in range(20)]
    write_shards(tmp_path / "b", raws[:5])
    write_shards(tmp_path / "a", raws[5:])
    write_shards(tmp_path / "a", [robot_sample(99)], "heldout")
    write_shards(tmp_path / "whole", raws)
    recipe, sources = open_train_data(settings(tmp_path, b=1, a=1), action_config(), width=8, vocab=512)
    assert [(source.name, len(source.index)) for source in sources] == [("a", 15), ("b", 5)]
    _, (whole,) = open_train_data(settings(tmp_path, whole=1), action_config(), width=8, vocab=512)
    # The same to the last bit, however samples are spread over sources.
    assert recipe.statistics == whole.index.statistics
    stores = open_stores(settings(tmp_path, b=1, a=1))
    assert list(stores) == ["a", "b"]
    assert len(open_index(stores["a"], "heldout", recipe)) == 1


def test_robots_of_one_name_must_be_one_robot(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, [text_sample(seed, 40) for seed in range(5)])
    save_embodiments(tmp_path / "b", (Embodiment(name="sawyer", state=("x",), action=("x",), cameras=(), fps=5),))
    with pytest.raises(ConfigError, match=r"data\.mixture\.b\.shards=.*its robot 'sawyer' is not the one"):
        open_train_data(settings(tmp_path, a=1, b=1), action_config(), width=8, vocab=512)


def test_page_locked_memory_takes_every_tensor_of_a_row(
    feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flagscale_vla.data.loader import _Delivery

    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(id(tensor))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    (batch,) = read(feed, tmp_path, 1)
    values = {name: batch.__getattribute__(name) for name in PackedBatch.__slots__}
    done = _Delivery(values=values, room=None, laid=None, reads=1, faults=()).pin_memory()
    assert sorted(pinned) == sorted(id(value) for value in values.values() if torch.is_tensor(value))
    assert_same([PackedBatch(**done.values)], [batch])
