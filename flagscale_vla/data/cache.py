"""Bytes of remote shards kept on a local disk: bounded, shared by processes, sound whenever one of them is killed.

Each block is a file that appears by rename. A block that is used is made new by its time of change, and where there is
no room those used longest ago go first. All writing is done one process at a time, under a lock on the file that tells
how many bytes there are.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path

logger = logging.getLogger(__name__)

TOTAL = "bytes"
"""File of the number of bytes in all blocks; never fewer than there are."""
PARTIAL = "block.tmp"
"""The one block that is being written."""
KEPT_SHARE = 0.9
"""What is left of the bound when blocks are removed: looking at all of them costs time, so it is done seldom."""


@dataclass(frozen=True, slots=True)
class BlockCache:
    """A folder of blocks.

    Args:
        folder: made when it is wanted; holds nothing else.
        max_bytes: of all blocks; never exceeded.
    """

    folder: Path
    max_bytes: int

    def get(self, key: str, size: int) -> bytes | None:
        """The block of this key if it is there whole.

        Args:
            key: hexadecimal.
            size: bytes it must have.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        # After a loss of power a file may be there without its bytes.
        return content if len(content) == size else None

    def put(self, key: str, content: bytes) -> None:
        """Keep a block, if it fits at all. A disk that cannot take it is told once, and nothing is kept."""
        if len(content) > self.max_bytes:
            return
        try:
            self._put(self._path(key), content)
        except OSError as error:
            _warn(str(self.folder), error.strerror)

    def _put(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            if path.exists():
                # Another process has fetched the same; a broken one is written anew.
                if path.stat().st_size == len(content):
                    return
                path.unlink()
            total = self._total(file)
            if total + len(content) > self.max_bytes:
                total = self._evict(len(content))
            # The number first: who dies between leaves it too high, and the next look at all blocks mends it.
            self._note(file, total + len(content))
            partial = self.folder / PARTIAL
            partial.write_bytes(content)
            os.replace(partial, path)

    @contextmanager
    def _locked(self) -> Iterator[FileIO]:
        with FileIO(self.folder / TOTAL, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _total(self, file: FileIO) -> int:
        file.seek(0)
        digits = file.read()
        return int(digits) if digits.isdigit() else self._evict(0)

    def _note(self, file: FileIO, total: int) -> None:
        file.truncate(0)
        file.write(str(total).encode())

    def _evict(self, wanted: int) -> int:
        """Remove the oldest blocks until `wanted` bytes fit, and some more; the bytes that are left."""
        (self.folder / PARTIAL).unlink(missing_ok=True)
        blocks = sorted(self._blocks())
        total = sum(size for _, size, _ in blocks)
        if total + wanted <= self.max_bytes:
            return total
        for _, size, path in blocks:
            if total <= max(0, int(self.max_bytes * KEPT_SHARE) - wanted):
                break
            os.unlink(path)
            total -= size
        return total

    def _blocks(self) -> Iterator[tuple[int, int, str]]:
        """(time of use, bytes, path) of each block."""
        for folder in os.scandir(self.folder):
            if folder.is_dir():
                for block in os.scandir(folder.path):
                    stat = block.stat()
                    yield stat.st_mtime_ns, stat.st_size, block.path

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key


@lru_cache
def _warn(folder: str, reason: str) -> None:
    logger.warning("%s takes no blocks of remote shards, which are fetched anew each time: %s", folder, reason)
