"""The cache of blocks: never over its bound, the oldest first out, and sound whatever dies."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.data.cache import BlockCache


def key(number: int) -> str:
    return f"{number:032x}"[::-1]


def bytes_in(folder: Path) -> int:
    """Of everything but the file that counts."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.name != "bytes":
                total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def bytes_held(folder: Path) -> int:
    """The same while nobody writes; else a block could be counted that has gone when the next one is."""
    with (folder / "bytes").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return bytes_in(folder)


def block(number: int, size: int) -> bytes:
    return bytes([number % 251]) * size


def test_a_block_comes_back(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "deep" / "cache", 1000)
    assert cache.get(key(1), 10) is None
    cache.put(key(1), block(1, 10))
    assert cache.get(key(1), 10) == block(1, 10)
    assert cache.get(key(1), 11) is None


def test_the_bound_is_never_exceeded(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10_000)
    generator = np.random.default_rng(0)
    for number, size in enumerate(generator.integers(1, 3_000, 80).tolist()):
        cache.put(key(number), block(number, size))
        assert bytes_in(tmp_path) <= 10_000
        assert cache.get(key(number), size) == block(number, size)
    assert bytes_in(tmp_path) > 5_000


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 100)
    cache.put(key(1), block(1, 60))
    cache.put(key(2), block(2, 101))
    assert cache.get(key(2), 101) is None
    assert cache.get(key(1), 60) is not None


def test_those_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    for number in range(10):
        cache.put(key(number), block(number, 100))
        time.sleep(0.002)
    assert cache.get(key(0), 100) is not None
    cache.put(key(10), block(10, 100))
    there = [number for number in range(11) if cache.get(key(number), 100) is not None]
    assert there == [0, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("total", ["", "nonsense", "0", "999999999"])
def test_a_wrong_count_is_mended(tmp_path: Path, total: str) -> None:
    """As it is where a process died, or a disk lost it; only a count that is too low could pass the bound."""
    cache = BlockCache(tmp_path, 1000)
    cache.put(key(1), block(1, 400))
    if total != "0":
        (tmp_path / "bytes").write_text(total)
    for number in range(2, 6):
        cache.put(key(number), block(number, 300))
        assert bytes_in(tmp_path) <= 1000
    assert (tmp_path / "bytes").read_text() == str(bytes_in(tmp_path))


def test_a_block_that_lost_its_bytes_is_fetched_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    cache.put(key(1), block(1, 100))
    (path,) = tmp_path.glob("*/*")
    os.truncate(path, 0)
    assert cache.get(key(1), 100) is None
    cache.put(key(1), block(1, 100))
    assert cache.get(key(1), 100) == block(1, 100)


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = BlockCache(tmp_path / "file", 1000)
    for number in range(3):
        cache.put(key(number), b"bytes")
    assert cache.get(key(0), 5) is None
    (record,) = caplog.records
    assert "takes no blocks of remote shards" in record.message


def fill(folder: Path, first: int) -> None:
    cache = BlockCache(folder, 20_000)
    for number in range(first, 1_000_000):
        cache.put(key(number % 500), block(number % 500, 500 + number % 500))


def test_processes_share_it_and_may_be_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(tmp_path, 100 * number), daemon=True) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            assert bytes_held(tmp_path) <= 20_000
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    cache = BlockCache(tmp_path, 20_000)
    for number in range(500):
        content = cache.get(key(number), 500 + number)
        assert content is None or content == block(number, 500 + number)
        cache.put(key(number), block(number, 500 + number))
        assert number % 20 or bytes_in(tmp_path) <= 20_000
