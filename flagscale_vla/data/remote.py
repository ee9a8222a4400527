"""Shards that fsspec reaches: file://, s3://, gs://, http(s):// and what else it has a package for."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import fsspec
from fsspec.spec import AbstractFileSystem

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import CacheConfig
from flagscale_vla.data.cache import BlockCache
from flagscale_vla.data.kept import KEPT_FOLDER, Kept
from flagscale_vla.data.place import Place
from flagscale_vla.data.tar import Buffer

LIST = "shards.json"
"""Names the shards where they cannot be listed, as over http."""
LIST_VERSION = 1
UNLISTED = ("http", "https")
ATTEMPTS = 4
PAUSE = 0.25
"""Seconds before the second attempt, doubled before each further one."""
TIMEOUT = 60.0
"""Seconds for one answer."""
THREADS = 16
PIECE = 8 << 20
"""Bytes of a shard fetched at a time where all of it is looked through."""
PIECES = 3
"""Kept in memory; a sample's members lie close together."""
STAMPS = ("ETag", "etag", "md5Hash", "Content-MD5", "mtime", "LastModified", "Last-Modified", "updated", "created")
"""What file systems call that which changes with a file; the first that there is counts."""
CLIENT_ERRORS = {
    "aiohttp": ("aiohttp", "ClientError"),
    "botocore": ("botocore.exceptions", "BotoCoreError"),
    "gcsfs": ("gcsfs.retry", "HttpError"),
}
"""Errors of clients that are no `OSError`: package, module and name."""
USES = {"http": ("aiohttp",), "https": ("aiohttp",), "s3": ("aiohttp", "botocore"), "gs": ("aiohttp", "gcsfs")}
FEW: Mapping[str, tuple[int, str]] = MappingProxyType({})

Answer = TypeVar("Answer")


class RemoteStore:
    """A folder at a URL.

    Samples that were read are kept in a bounded cache on this machine. What fails is tried again, then told as an
    `OSError` with the file's URL.

    Args:
        url: of the folder.
        cache: where samples and what is found in shards are kept.
        stats: (bytes, version) of files that are known already; travels with the store to other processes.

    Raises:
        ConfigError: the package for this kind of URL is missing, or there is none.
    """

    def __init__(self, url: str, cache: CacheConfig, stats: Mapping[str, tuple[int, str]] = FEW) -> None:
        self._url, self.cache = url.rstrip("/"), cache
        self.protocol = url.partition("://")[0]
        self._blocks = BlockCache(Path(cache.folder) / "blocks", cache.max_bytes)
        self._stats = dict(stats)
        open_filesystem(self.protocol)

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, CacheConfig, Mapping[str, tuple[int, str]]]]:
        return RemoteStore, (self._url, self.cache, self._stats)

    @property
    def url(self) -> str:
        """The folder's URL."""
        return self._url

    @property
    def kept(self) -> Kept:
        """A folder of this URL's own in the cache's."""
        return Kept((elsewhere(self.cache, self._url),))

    def list_shards(self, split: str) -> tuple[str, ...]:
        """As `Store`."""
        if self.protocol in UNLISTED:
            return self._listed(split)
        try:
            entries = self._try("", lambda: self._files.ls(self._url, detail=True, **self._limits))
        except FileNotFoundError:
            return ()
        found = {entry["name"].rpartition("/")[2]: entry for entry in entries}
        shards = sorted(name for name in found if fnmatch(name, f"{split}-*.tar"))
        self._stats |= {name: _stat_of(found[name]) for name in shards}
        return tuple(shards)

    def stamps(self, names: Sequence[str]) -> tuple[str, ...]:
        """Name, size and what the server tells of the version of each file."""
        with ThreadPoolExecutor(THREADS) as pool:
            return tuple(pool.map(self._stamp, names))

    def size(self, name: str) -> int:
        """As `Store`."""
        return self._stat(name)[0]

    def read(self, name: str, start: int, size: int) -> bytes:
        """As `Store`; from the cache where it was read before. No byte besides is fetched."""
        end = min(start + size, self.size(name))
        key = _hash(self._url, self._stamp(name), start, end)
        content = self._blocks.get(key, end - start)
        if content is None:
            content = self._fetch(name, start, end)
            self._blocks.put(key, content)
        return content

    def prepare(self, places: Iterable[Place]) -> None:
        """Fetch several samples at once into the cache, so that a row takes about as long as one of its samples."""
        missing = [place for place in places if place.size <= self.cache.max_bytes]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(self._read_quietly, missing):
                pass

    def _read_quietly(self, place: Place) -> None:
        with suppress(OSError):
            self.read(place.shard, place.start, place.size)

    def find(self, name: str) -> bytes | None:
        """As `Store`."""
        try:
            return self._try(name, lambda: self._files.cat_file(self._path(name), **self._limits))
        except FileNotFoundError:
            return None

    @contextmanager
    def whole(self, name: str) -> Iterator[Buffer]:
        """As `Store`; fetched in pieces while it is looked through, and not kept."""
        yield _Window(lambda start, end: self._fetch(name, start, end), self.size(name))

    @cached_property
    def _files(self) -> AbstractFileSystem:
        return open_filesystem(self.protocol)

    @property
    def _limits(self) -> dict[str, float]:
        """What keeps a call that is made in fsspec's own thread from waiting for ever."""
        return {"timeout": TIMEOUT} if self._files.async_impl else {}

    def _path(self, name: str) -> str:
        return f"{self._url}/{name}"

    def _listed(self, split: str) -> tuple[str, ...]:
        content = self.find(LIST)
        if content is None:
            raise FileNotFoundError(
                f"{self._path(LIST)} is missing: over {self.protocol} it names the shards. "
                "`python run.py --config-name index data.shards=FOLDER` writes it into their folder"
            )
        return tuple(entry["name"] for entry in read_list(content, self._path(LIST)).get(split, []))

    def _stat(self, name: str) -> tuple[int, str]:
        if name not in self._stats:
            # A server over http that cannot be reached is told as a file that is missing.
            info = self._try(name, lambda: self._files.info(self._path(name), **self._limits), missing_is_final=False)
            if info["size"] is None:
                raise OSError(f"{self._path(name)}: the server does not tell its size")
            self._stats[name] = _stat_of(info)
        return self._stats[name]

    def _stamp(self, name: str) -> str:
        size, version = self._stat(name)
        return f"{name} {size} {version}"

    def _fetch(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, all of them."""

        def attempt() -> bytes:
            content: bytes = self._files.cat_file(self._path(name), start=start, end=end, **self._limits)
            if len(content) != end - start:
                raise OSError(f"gave {len(content)} of the {end - start} bytes from {start} on; does it know ranges?")
            return content

        return self._try(name, attempt) if end > start else b""

    def _try(self, name: str, attempt: Callable[[], Answer], *, missing_is_final: bool = True) -> Answer:
        """What one of several attempts gives.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: all attempts failed.
        """
        reason: BaseException | None = None
        for number in range(ATTEMPTS):
            try:
                return attempt()
            except FileNotFoundError as error:
                if missing_is_final:
                    raise
                reason = error
            except errors_of(self.protocol) as error:
                reason = error
            if number + 1 < ATTEMPTS:
                time.sleep(PAUSE * 2**number)
        said = f"{type(reason).__name__} {reason}".strip()
        raise OSError(f"{self._path(name)} failed {ATTEMPTS} times: {said}") from reason


class _Window:
    """A remote file as a buffer that is looked through from front to back; the last few pieces are at hand."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._pieces: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self._size)
        first, last = start // PIECE, max(start, end - 1) // PIECE
        if first == last:
            return self._piece(first)[start - first * PIECE : end - first * PIECE]
        whole = b"".join(self._piece(number) for number in range(first, last + 1))
        return whole[start - first * PIECE : end - first * PIECE]

    def _piece(self, number: int) -> bytes:
        if number not in self._pieces:
            while len(self._pieces) >= PIECES:
                self._pieces.popitem(last=False)
            self._pieces[number] = self._fetch(number * PIECE, min((number + 1) * PIECE, self._size))
        return self._pieces[number]


@lru_cache
def open_filesystem(protocol: str) -> AbstractFileSystem:
    """fsspec's file system for a kind of URL.

    Raises:
        ConfigError: there is none, or its package is missing.
    """
    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"data.shards={protocol}://...: cannot be opened ({error}). "
            "This would pass: a folder, or a URL of s3:// with s3fs installed, gs:// with gcsfs, http:// with aiohttp"
        ) from error


@lru_cache
def errors_of(protocol: str) -> tuple[type[BaseException], ...]:
    """What a file system's client raises where an answer fails."""
    places = [CLIENT_ERRORS[package] for package in USES.get(protocol, ())]
    return (OSError, *(import_module(module).__dict__[name] for module, name in places))


def elsewhere(cache: CacheConfig, url: str) -> Path:
    """Where in the cache's folder that is kept which is found in the shards of a folder or URL."""
    return Path(cache.folder) / f"{KEPT_FOLDER.removeprefix('.')}-{_hash(url)}"


def read_list(content: bytes, where: str) -> dict[str, list[dict[str, Any]]]:
    """The shards by split in what `shards.json` holds: name, bytes, digest and samples of each.

    Raises:
        ValueError: it is of another version, or no such file.
    """
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("version") != LIST_VERSION:
        raise ValueError(f"{where} must be an object of version {LIST_VERSION}; the `index` job writes it")
    splits: dict[str, list[dict[str, Any]]] = found["splits"]
    return splits


def _stat_of(info: Mapping[str, Any]) -> tuple[int, str]:
    """(bytes, version) of a file as its file system tells it."""
    return int(info["size"]), next((str(info[key]) for key in STAMPS if info.get(key)), "")


def _hash(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
