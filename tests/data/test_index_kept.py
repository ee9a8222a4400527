"""What an index keeps: only new shards are read, many may ask at once, and a build that dies leaves nothing half."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from flagscale_vla.data import index as index_module
from flagscale_vla.data.index import build_index, open_index
from flagscale_vla.data.kept import PARTIAL
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.scan import Scan, scan_shard
from flagscale_vla.data.store import LocalStore, Store
from flagscale_vla.records import Text
from tests.data.test_remote import same_but_for_stores
from tests.samples import interleaved_sample, make_recipe, picture_sample, robot_sample, text_sample, write_shards

RAWS = [robot_sample(seed) for seed in range(14)]
DEAD = 1 << 22
"""No process has this number: Linux gives smaller ones."""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe().with_statistics({})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = write_shards(tmp_path / "shards", RAWS, max_bytes=15_000)
    assert len(shards) > 4
    return tmp_path / "shards"


def noted(path: Path, pause: float = 0.0) -> Callable[[Store, str, Recipe], Scan]:
    """`scan_shard` that notes the shards it looks through in a file, over all processes."""

    def scan(store: Store, shard: str, recipe: Recipe) -> Scan:
        with path.open("a") as lines:
            lines.write(shard + "\n")
        time.sleep(pause)
        return scan_shard(store, shard, recipe)

    return scan


def read_since(path: Path) -> list[str]:
    """The shards that were looked through since this was asked last."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    path.unlink()
    return lines


def test_only_what_is_new_is_read(
    folder: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setattr(index_module, "scan_shard", noted(notes))
    store = LocalStore(folder)
    open_index(store, "train", recipe)
    assert len(read_since(notes)) == len(store.list_shards("train"))
    write_shards(tmp_path / "more", [robot_sample(50)])
    shutil.copy(tmp_path / "more" / "train-000000.tar", folder / "train-000900.tar")
    grown = open_index(store, "train", recipe)
    assert read_since(notes) == ["train-000900.tar"]
    assert len(grown) == len(RAWS) + 1
    (folder / "train-000000.tar").unlink()
    (folder / "train-000001.tar").touch()
    open_index(store, "train", recipe)
    assert read_since(notes) == ["train-000001.tar"]
    shutil.rmtree(folder / ".index")
    same_but_for_stores(open_index(store, "train", recipe), build_index(store, "train", recipe))


@pytest.mark.parametrize("damage", [0, 100])
def test_what_lost_its_bytes_is_made_again(folder: Path, recipe: Recipe, damage: int) -> None:
    store = LocalStore(folder)
    first = open_index(store, "train", recipe)
    for path in (folder / ".index").glob("*.npz"):
        os.truncate(path, damage)
    same_but_for_stores(open_index(store, "train", recipe), first)


def open_it(folder: Path, recipe: Recipe, notes: Path, pause: float) -> None:
    # A fork shares tqdm's lock with this process, and would take it along when it is killed.
    tqdm.set_lock(threading.RLock())
    index_module.scan_shard = noted(notes, pause)  # type: ignore[assignment]
    assert len(open_index(LocalStore(folder), "train", recipe)) == len(RAWS)


def start(count: int, *arguments: object) -> list[multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_it, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    return list(processes)


def test_many_who_ask_at_once_share_one_build(folder: Path, tmp_path: Path, recipe: Recipe) -> None:
    notes = tmp_path / "notes"
    for process in start(4, folder, recipe, notes, 0.01):
        process.join()
        assert process.exitcode == 0
    assert sorted(read_since(notes)) == list(LocalStore(folder).list_shards("train"))


def test_a_build_that_is_killed_leaves_nothing_half(
    folder: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    (process,) = start(1, folder, recipe, notes, 0.2)
    while len(list((folder / ".index").glob("train-*.npz"))) < 2:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    begun = read_since(notes)
    left = folder / ".index" / f"train-000003-0123.npz{PARTIAL.format(DEAD)}"
    left.write_bytes(b"half")
    monkeypatch.setattr(index_module, "scan_shard", noted(notes))
    index = open_index(LocalStore(folder), "train", recipe)
    assert index.keys == tuple(raw.key for raw in RAWS)
    assert not set(begun[:2]) & set(read_since(notes))
    assert not list((folder / ".index").glob("*.tmp"))


def test_what_is_being_written_by_others_is_left_alone(folder: Path, recipe: Recipe) -> None:
    (folder / ".index").mkdir()
    ours = folder / ".index" / f"a.npz{PARTIAL.format(os.getppid())}"
    theirs = folder / ".index" / f"a.npz.another-host-{DEAD}.tmp"
    for path in (ours, theirs):
        path.write_bytes(b"half")
    open_index(LocalStore(folder), "train", recipe)
    assert ours.exists()
    assert theirs.exists()


def test_a_folder_that_cannot_be_written_to_is_indexed_elsewhere(
    folder: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".index").write_text("a file where a folder should be")
    store = LocalStore(folder, tmp_path / "cache" / "index-0")
    first = open_index(store, "train", recipe)
    assert list((tmp_path / "cache" / "index-0").glob("train-*.npz"))
    monkeypatch.setattr(index_module, "scan_shard", lambda *_: pytest.fail("read again"))
    same_but_for_stores(open_index(store, "train", recipe), first)
    (tmp_path / "file").write_text("no folder")
    nowhere = LocalStore(folder, tmp_path / "file" / "index-0")
    with pytest.raises(ValueError, match=r"shards/\.index cannot be written to .*file/index-0 cannot be written to"):
        open_index(nowhere, "heldout" if nowhere.list_shards("heldout") else "train", make_recipe(horizon=9))


def test_segments_tell_where_a_conversation_may_be_cut(tmp_path: Path, recipe: Recipe) -> None:
    raws = [interleaved_sample(1, 3), text_sample(2, 50), picture_sample(3, 30)]
    write_shards(tmp_path, raws)
    index = open_index(LocalStore(tmp_path), "train", recipe)
    system = (
        len(recipe.lay_out(raws[1]).tokens) - index.segments[index.segment_starts[1] : index.segment_starts[2]].sum()
    )
    for sample, raw in enumerate(raws):
        own = slice(index.segment_starts[sample], index.segment_starts[sample + 1])
        assert len(index.segments[own]) == len(raw.segments)
        assert index.lengths[sample] == system + index.segments[own].sum()
        for cut in np.flatnonzero(index.cuts[own]).tolist():
            # The beginning is as long as its segments say, so it may be a sample of its own.
            if cut:
                part = type(raw)(key=raw.key, segments=raw.segments[:cut])
                assert recipe.length(part) == system + index.segments[own][:cut].sum()
                before = raw.segments[cut - 1]
                assert not isinstance(before, Text) or before.supervised
        assert index.cuts[own][0]
    assert index.cuts[: index.segment_starts[1]].sum() == 4
