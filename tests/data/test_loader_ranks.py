"""Workers beside a process group: they start after gloo has, and every rank reads its share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from flagscale_vla.data.faults import Quarantine
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.index import open_index
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.store import LocalStore
from tests.helpers import run_ranks
from tests.samples import make_feed, make_recipe, mixed_samples, write_shards


def open_feed(folder: Path) -> Feed:
    recipe = make_recipe()
    index = open_index(LocalStore(folder), "train", recipe)
    return make_feed(index, recipe.with_statistics(index.statistics), 512, augment=True)


def loader_of(feed: Feed, rank: int, size: int, workers: int, quarantine: Path) -> Loader:
    return Loader(
        feed,
        dp_rank=rank,
        dp_size=size,
        position=Position(),
        workers=workers,
        pin=False,
        quarantine=Quarantine(quarantine, 0.0, 0.0),
    )


def read_share(rank: int, folder: Path) -> list[tuple[str, ...]]:
    dist.init_process_group("gloo")
    with loader_of(open_feed(folder), rank, 2, 1, folder / f"quarantine_{rank}.jsonl") as loader:
        packs = [batch.keys for batch in loader.take(4)]
        dist.barrier()
    dist.destroy_process_group()
    return packs


@pytest.mark.ranks
def test_ranks_with_workers_share_the_packs(tmp_path: Path) -> None:
    write_shards(tmp_path, mixed_samples(0, 40, longest=300))
    with loader_of(open_feed(tmp_path), 0, 1, 0, tmp_path / "q.jsonl") as loader:
        alone = [batch.keys for batch in loader.take(8)]
    first, second = run_ranks(read_share, 2, tmp_path)
    assert [keys for pair in zip(first, second, strict=True) for keys in pair] == alone
