"""Shards at a URL: the same index and samples as in a folder, no byte too many, and a failing server that is told."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import CacheConfig
from flagscale_vla.data import remote, scan
from flagscale_vla.data.faults import BadSampleError, Quarantine
from flagscale_vla.data.index import Index, build_index, open_index
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.store import LocalStore, Store, open_store
from tests.data.servers import FolderServer, served
from tests.samples import PANDA, make_feed, make_recipe, picture_sample, robot_sample, text_sample, write_shards

RAWS = [*(robot_sample(seed) for seed in range(6)), robot_sample(20, PANDA), text_sample(0, 40), picture_sample(1, 20)]
MANY = 64 << 20


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe().with_statistics({})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    shards = write_shards(folder, RAWS, max_bytes=40_000)
    os.truncate(shards[0], shards[0].stat().st_size // 2)
    write_list(folder)
    return folder


def write_list(folder: Path) -> None:
    entries = [{"name": path.name} for path in sorted(folder.glob("train-*.tar"))]
    (folder / "shards.json").write_text(json.dumps({"version": 1, "splits": {"train": entries}}))


@pytest.fixture
def server(folder: Path) -> Iterator[FolderServer]:
    with served(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.01)


def cached(tmp_path: Path, url: str, max_bytes: int = MANY) -> Store:
    return open_store(url, CacheConfig(folder=str(tmp_path / "cache"), max_bytes=max_bytes))


def same_but_for_stores(ours: Index, theirs: Index) -> None:
    names = {field.name for field in dataclasses.fields(Index)} - {"store", "gatherers"}
    for name in (*names, "statistics"):
        a, b = (index.__getattribute__(name) for index in (ours, theirs))
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, name


def assert_reads_alike(ours: Index, theirs: Index) -> None:
    for sample in range(len(theirs)):
        a, b = (read_sample(index.store, index.place(sample)) for index in (ours, theirs))
        assert a.key == b.key
        assert len(a.segments) == len(b.segments)
        assert repr(a) == repr(b)


def test_http_gives_the_index_and_the_samples_of_the_folder(
    folder: Path, server: FolderServer, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = build_index(LocalStore(folder), "train", recipe)
    monkeypatch.setattr(remote, "PIECE", 30_000)
    index = build_index(cached(tmp_path, server.url), "train", recipe)
    assert index.faults
    same_but_for_stores(index, local)
    assert_reads_alike(index, local)


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_what_fsspec_lists_needs_no_list(folder: Path, tmp_path: Path, recipe: Recipe, protocol: str) -> None:
    files = fsspec.filesystem(protocol)
    root = f"{protocol}://{tmp_path}/bucket"
    files.makedirs(root)
    for path in folder.glob("*.*"):
        if path.is_file() and path.name != "shards.json":
            files.pipe_file(f"{root}/{path.name}", path.read_bytes())
    local = build_index(LocalStore(folder), "train", recipe)
    index = open_index(cached(tmp_path, root), "train", recipe)
    same_but_for_stores(index, local)
    assert_reads_alike(index, local)
    with pytest.raises(ValueError, match=r"holds no heldout-\*\.tar"):
        open_index(cached(tmp_path, root), "heldout", recipe)


def test_a_shard_is_fetched_once_while_it_is_looked_through(
    folder: Path, server: FolderServer, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far fewer bytes at hand than a shard has.
    for module in (remote, scan):
        monkeypatch.setattr(module, "PIECE", 8192)
    build_index(cached(tmp_path, server.url), "train", recipe)
    assert sum(size for _, _, size in server.sent) == sum(path.stat().st_size for path in folder.glob("train-*.tar"))


def test_a_sample_costs_its_own_bytes_and_only_once(server: FolderServer, tmp_path: Path, recipe: Recipe) -> None:
    store = cached(tmp_path, server.url)
    place = build_index(store, "train", recipe).place(3)
    server.sent.clear()
    first = read_sample(store, place)
    assert server.sent == [(place.shard, place.start, place.size)]
    # Another process, as a worker is.
    again = read_sample(pickle.loads(pickle.dumps(store)), place)
    assert len(server.sent) == 1
    assert repr(again) == repr(first)


def test_a_connection_that_is_cut_is_made_again(server: FolderServer, tmp_path: Path, recipe: Recipe) -> None:
    server.cuts = 3
    index = build_index(cached(tmp_path, server.url), "train", recipe)
    server.cuts = 2
    assert read_sample(index.store, index.place(0)).segments
    assert server.cuts == 0


def test_a_server_that_always_cuts_is_a_fault_with_the_url(
    server: FolderServer, tmp_path: Path, recipe: Recipe
) -> None:
    index = build_index(cached(tmp_path, server.url), "train", recipe)
    place = index.place(2)
    server.cuts = 1000
    with pytest.raises(BadSampleError) as caught:
        read_sample(index.store, place)
    assert caught.value.member == f"{place.shard}/byte {place.start}"
    assert f"{server.url}/{place.shard} failed 4 times: ClientPayloadError" in caught.value.reason


def test_a_server_that_hangs_is_given_up(
    server: FolderServer, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(cached(tmp_path, server.url), "train", recipe)
    monkeypatch.setattr(remote, "TIMEOUT", 0.05)
    server.released.clear()
    with pytest.raises(BadSampleError, match=r"train-\d+\.tar failed 4 times: FSTimeoutError"):
        read_sample(index.store, index.place(2))


def test_a_row_is_fetched_at_once_and_read_from_the_cache(server: FolderServer, tmp_path: Path, recipe: Recipe) -> None:
    index = build_index(cached(tmp_path, server.url), "train", recipe)
    places = [index.place(sample) for sample in range(len(index))]
    server.sent.clear()
    server.waiting = 0
    server.released.clear()
    thread = threading.Thread(target=index.store.prepare, args=(places,))
    thread.start()
    until = time.monotonic() + 10
    while server.waiting < len(places) and time.monotonic() < until:
        time.sleep(0.01)
    assert server.waiting == len(places)
    server.released.set()
    thread.join()
    assert sorted(server.sent) == sorted((place.shard, place.start, place.size) for place in places)
    for place in places:
        assert read_sample(index.store, place).segments
    assert len(server.sent) == len(places)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_reads_at_a_url_what_it_reads_in_the_folder(
    folder: Path, server: FolderServer, tmp_path: Path, recipe: Recipe, workers: int
) -> None:
    rows = []
    for store in (LocalStore(folder), cached(tmp_path, server.url)):
        index = build_index(store, "train", recipe)
        feed = make_feed(index, recipe.with_statistics(index.statistics), 256, seed=0, augment=False)
        quarantine = Quarantine(tmp_path / "list.jsonl", 0.2, 1.0)
        with Loader(
            feed, dp_rank=0, dp_size=1, position=Position(), workers=workers, pin=False, quarantine=quarantine
        ) as loader:
            rows.append([(batch.keys, batch.tokens.tolist(), batch.pixels.sum().item()) for batch in loader.take(4)])
    assert rows[0] == rows[1]


def test_an_index_is_not_built_on_what_could_not_be_fetched(
    folder: Path, server: FolderServer, tmp_path: Path, recipe: Recipe
) -> None:
    """Else a network that fails for a minute would be kept as samples that are bad for ever."""
    store = cached(tmp_path, server.url)
    server.cuts = 1000
    with pytest.raises(OSError, match=r"http://.*/train-000000\.tar failed 4 times"):
        build_index(store, "train", recipe)
    server.cuts = 0
    same_but_for_stores(build_index(store, "train", recipe), build_index(LocalStore(folder), "train", recipe))


def test_a_server_without_ranges_is_told(server: FolderServer, tmp_path: Path, recipe: Recipe) -> None:
    index = build_index(cached(tmp_path, server.url), "train", recipe)
    server.knows_ranges = False
    with pytest.raises(BadSampleError, match="does it know ranges"):
        read_sample(index.store, index.place(2))


def test_http_needs_a_list_of_shards(folder: Path, tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "bare").mkdir()
    for path in folder.glob("train-*.tar"):
        shutil.copy(path, tmp_path / "bare")
    with served(tmp_path / "bare") as server:
        store = cached(tmp_path, server.url)
        with pytest.raises(FileNotFoundError, match=r"shards\.json is missing: .*--config-name index"):
            open_index(store, "train", recipe)
        (tmp_path / "bare" / "shards.json").write_text("[]")
        with pytest.raises(ValueError, match=r"shards\.json must be an object of version 1"):
            open_index(store, "train", recipe)
    with pytest.raises(OSError, match=r"http://127.*shards\.json failed 4 times"):
        open_index(store, "train", recipe)


def test_a_shard_that_is_replaced_is_read_anew(folder: Path, tmp_path: Path, recipe: Recipe) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    with served(tmp_path / "copy") as server:
        first = open_index(cached(tmp_path, server.url), "train", recipe)
        assert read_sample(first.store, first.place(len(first) - 1))
        write_shards(tmp_path / "new", [robot_sample(50)])
        shutil.move(tmp_path / "new" / "train-000000.tar", tmp_path / "copy" / first.shards[-1])
        second = open_index(cached(tmp_path, server.url), "train", recipe)
        assert second.keys[-1] == "robot-00050"
        assert read_sample(second.store, second.place(len(second) - 1)).key.endswith("robot-00050")


@pytest.mark.parametrize("url", ["nothing://bucket", "s4://bucket"])
def test_a_url_that_nothing_opens_says_what_would(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.shards=.*: cannot be opened .*This would pass: .*s3fs"):
        cached(tmp_path, url)


def test_s3_through_its_own_protocol(
    folder: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        remote.open_filesystem.cache_clear()
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        for path in folder.glob("*.*"):
            if path.is_file():
                files.put_file(str(path), f"bucket/shards/{path.name}")
        index = open_index(cached(tmp_path, "s3://bucket/shards"), "train", recipe)
        local = build_index(LocalStore(folder), "train", recipe)
        same_but_for_stores(index, local)
        assert_reads_alike(index, local)
    finally:
        server.stop()
        remote.open_filesystem.cache_clear()
