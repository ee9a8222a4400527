"""Eight kinds of damage: a run completes with the exact list, ranks in step, or its budget stops it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flagscale_vla.data.actions import open_chunks
from flagscale_vla.data.faults import Quarantine, load_faults
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.index import build_index
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.store import LocalStore
from tests.samples import make_feed, make_recipe, robot_sample, write_shards
from tools.damage_shards import Damage, damage_folder

COUNT = 400
SHARE = 0.0175
"""One of each kind in samples, two that are interleaved, and one that is lost behind the cut."""
KINDS = {
    "truncated tar": 1,
    "bad JPEG": 1,
    "decompression bomb": 1,
    "NaN action": 1,
    "wrong shape": 1,
    "missing key": 1,
    "interleaved keys": 2,
    "empty shard": 1,
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Damage]]:
    folder = tmp_path_factory.mktemp("damage")
    raws = [robot_sample(seed, side=56) for seed in range(40)]
    copies = [type(raw)(key=f"{raw.key}-{copy}", segments=raw.segments) for copy in range(COUNT // 40) for raw in raws]
    assert len(write_shards(folder / "clean", copies, max_bytes=500_000)) > 3
    done = damage_folder(folder / "clean", folder / "damaged", SHARE)
    assert {kind: sum(damage.kind == kind for damage in done) for kind in KINDS} == KINDS
    return folder / "damaged", done


@pytest.fixture(scope="module")
def feed(damaged: tuple[Path, list[Damage]]) -> Feed:
    recipe = make_recipe()
    index = build_index(LocalStore(damaged[0]), "train", recipe)
    return make_feed(index, recipe.with_statistics(index.statistics), 512, seed=0, augment=False)


@contextmanager
def opened(feed: Feed, path: Path, *, rank: int = 0, size: int = 1, share: float = 0.05) -> Iterator[Loader]:
    with Loader(
        feed,
        dp_rank=rank,
        dp_size=size,
        position=Position(),
        workers=0,
        pin=False,
        quarantine=Quarantine(path, share, 0.2),
    ) as loader:
        yield loader


def listed(*paths: Path) -> set[tuple[str, str, str]]:
    return {(fault.shard, fault.member, fault.reason) for path in paths for fault in load_faults(path)}


def assert_exact(found: set[tuple[str, str, str]], done: list[Damage]) -> None:
    """Each damage is found once, where it is, for what it is; and nothing else is."""
    wanted = {(damage.shard, damage.member): damage.reason for damage in done}
    assert sorted((shard, member) for shard, member, _ in found) == sorted(wanted)
    for shard, member, reason in found:
        assert wanted[shard, member] in reason


def test_a_run_completes_with_the_exact_list(damaged: tuple[Path, list[Damage]], feed: Feed, tmp_path: Path) -> None:
    _, done = damaged
    # Interleaved and lost samples are two and one; of the other five kinds there is one each.
    good = COUNT - 5 - 2 - 1
    with opened(feed, tmp_path / "list.jsonl") as loader:
        keys: list[str] = []
        while len(keys) < good:
            keys += [key for batch in loader.take(1) for key in batch.keys]
        assert len(set(keys)) == good
        assert loader.quarantined == len(done)
    assert_exact(listed(tmp_path / "list.jsonl"), done)
    assert not {key.rpartition("/")[2] for key in keys} & {damage.member.partition(".")[0] for damage in done}


def test_ranks_stay_in_step_and_share_the_list(damaged: tuple[Path, list[Damage]], feed: Feed, tmp_path: Path) -> None:
    _, done = damaged
    with opened(feed, tmp_path / "alone.jsonl") as loader:
        rows = [batch.keys for batch in loader.take(80)]
    shared = []
    for rank in range(4):
        with opened(feed, tmp_path / f"rank_{rank}.jsonl", rank=rank, size=4) as loader:
            shared.append([batch.keys for batch in loader.take(20)])
    assert [shared[number % 4][number // 4] for number in range(80)] == rows
    assert_exact(listed(*tmp_path.glob("rank_*.jsonl")), done)


def test_the_budget_stops_the_run(feed: Feed, tmp_path: Path) -> None:
    bad = len(feed.faults)
    with pytest.raises(ValueError, match=rf"{bad} of {sum(feed.sound.values()) + bad} samples indexed are bad"):
        with opened(feed, tmp_path / "list.jsonl", share=0.01):
            pass


def test_the_chunks_of_the_same_shards_leave_out_the_same_samples(damaged: tuple[Path, list[Damage]]) -> None:
    """All but those whose pictures alone are bad: no picture is looked at."""
    folder, done = damaged
    chunks = open_chunks(LocalStore(folder), "train", 8)
    keys = {key.split("/")[1] for robot in chunks.robots.values() for key in robot.keys}
    pictures = {damage.member.partition(".")[0] for damage in done if damage.kind in ("bad JPEG", "decompression bomb")}
    unusable = {damage.member.partition(".")[0] for damage in done} - pictures
    assert pictures <= keys
    assert not unusable & keys
    assert len(keys) == COUNT - 3 - 2 - 1
