"""Where shards lie: a folder, or a place that fsspec reaches. All reading of shards goes through a `Store`."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flagscale_vla.config.data import CacheConfig
from flagscale_vla.data.kept import KEPT_FOLDER, Kept
from flagscale_vla.data.place import Place
from flagscale_vla.data.remote import RemoteStore, elsewhere
from flagscale_vla.data.shards import list_shards
from flagscale_vla.data.tar import Buffer


class Store(Protocol):
    """The files of one source. Can be pickled: each process opens what it needs itself."""

    @property
    def url(self) -> str:
        """For messages."""

    @property
    def kept(self) -> Kept:
        """Where what is found in the shards is kept."""

    def list_shards(self, split: str) -> tuple[str, ...]:
        """File names of the finished shards of a split, in order.

        Raises:
            OSError: they cannot be listed.
        """

    def stamps(self, names: Sequence[str]) -> tuple[str, ...]:
        """A text for each file that changes when the file does, without reading it.

        Raises:
            OSError: a file cannot be reached.
        """

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            OSError: it cannot be reached.
        """

    def read(self, name: str, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on; fewer where the file ends.

        Raises:
            OSError: they cannot be read; names the file.
        """

    def prepare(self, places: Iterable[Place]) -> None:
        """Make ready what is to be read next, where that takes long. What fails here is told when it is read."""

    def find(self, name: str) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            OSError: it cannot be read.
        """

    def whole(self, name: str) -> AbstractContextManager[Buffer]:
        """A shard to be looked through from front to back.

        Raises:
            OSError: it cannot be read; names the file.
        """


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder of this machine. Nothing of it is cached: the operating system does that.

    Args:
        path: the folder.
        elsewhere: where things are kept if the folder cannot be written to; None for nowhere.
    """

    path: Path
    elsewhere: Path | None = None

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.path)

    @property
    def kept(self) -> Kept:
        """`.index` beside the shards, then the other folder."""
        return Kept((self.path / KEPT_FOLDER, *([self.elsewhere] if self.elsewhere else [])))

    def list_shards(self, split: str) -> tuple[str, ...]:
        """As `Store`."""
        return tuple(path.name for path in list_shards(self.path, split))

    def stamps(self, names: Sequence[str]) -> tuple[str, ...]:
        """Name, size and time of change of each file."""
        found = [(name, (self.path / name).stat()) for name in names]
        return tuple(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found)

    def size(self, name: str) -> int:
        """As `Store`."""
        return (self.path / name).stat().st_size

    def read(self, name: str, start: int, size: int) -> bytes:
        """As `Store`."""
        file = os.open(self.path / name, os.O_RDONLY)
        try:
            return os.pread(file, size, start)
        finally:
            os.close(file)

    def prepare(self, places: Iterable[Place]) -> None:
        """Nothing: a disk is near."""

    def find(self, name: str) -> bytes | None:
        """As `Store`."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    @contextmanager
    def whole(self, name: str) -> Iterator[Buffer]:
        """As `Store`; the file is mapped."""
        with (self.path / name).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                # An empty file cannot be mapped.
                yield b""
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                yield buffer


def open_store(url: str, cache: CacheConfig) -> Store:
    """The store of a folder's path, or of a URL.

    Raises:
        ConfigError: there is no package for this kind of URL.
    """
    if "://" in url:
        return RemoteStore(url, cache)
    return LocalStore(Path(url), elsewhere(cache, str(Path(url).resolve())))


def find_shards(store: Store, split: str) -> tuple[str, ...]:
    """The shards of a split.

    Raises:
        ValueError: there are none.
    """
    shards = store.list_shards(split)
    if not shards:
        raise ValueError(f"{store.url} holds no {split}-*.tar; `python run.py --config-name record_demo` makes some")
    return shards
