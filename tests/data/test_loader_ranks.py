"""Workers beside a process group: they start after gloo has, and every rank reads its share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from flagscale_vla.data.faults import Quarantine
from flagscale_vla.data.index import open_index
from flagscale_vla.data.loader import Loader, Source
from flagscale_vla.data.store import LocalStore
from tests.helpers import run_ranks
from tests.samples import make_recipe, mixed_samples, write_shards


def make_source(folder: Path) -> Source:
    recipe = make_recipe()
    index = open_index(LocalStore(folder), "train", recipe)
    recipe = recipe.with_statistics(index.statistics)
    return Source(index=index, recipe=recipe, pack_length=512, seed=0, augment=True)


def read_share(rank: int, folder: Path) -> list[tuple[str, ...]]:
    dist.init_process_group("gloo")
    source = make_source(folder)
    quarantine = Quarantine(folder / f"quarantine_{rank}.jsonl", 0.0)
    with Loader(source, dp_rank=rank, dp_size=2, packs=0, workers=1, quarantine=quarantine) as loader:
        packs = [batch.keys for batch in loader.take(4)]
        dist.barrier()
    dist.destroy_process_group()
    return packs


@pytest.mark.ranks
def test_ranks_with_workers_share_the_packs(tmp_path: Path) -> None:
    write_shards(tmp_path, mixed_samples(0, 40, longest=300))
    source = make_source(tmp_path)
    with Loader(
        source, dp_rank=0, dp_size=1, packs=0, workers=0, quarantine=Quarantine(tmp_path / "q.jsonl", 0.0)
    ) as loader:
        alone = [batch.keys for batch in loader.take(8)]
    first, second = run_ranks(read_share, 2, tmp_path)
    assert [keys for pair in zip(first, second, strict=True) for keys in pair] == alone
