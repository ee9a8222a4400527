"""What was found in shards is kept, so that they are looked through only once.

It lies in `.index` beside the shards, or, where that cannot be written to, in the cache's folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

KEPT_FOLDER = ".index"
LOCK = ".lock"
HOST = socket.gethostname()
PARTIAL = f".{HOST}-{{}}.tmp"
"""What the name of a file ends with while the process of that number on this host writes it."""


def kept_name(about: str, stamps: Sequence[str], layout: Sequence[object], suffix: str) -> str:
    """The name something is kept under. It changes with the stamps of the shards it was found in, and with `layout`."""
    content = json.dumps([list(stamps), list(layout)])
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    return f"{about}-{digest}{suffix}"


def partial_path(path: Path) -> Path:
    """Where this process writes what is to appear whole at `path`."""
    return path.with_name(path.name + PARTIAL.format(os.getpid()))


@dataclass(frozen=True, slots=True)
class Kept:
    """Folders that are all looked in; the first that can be written to is written to.

    Args:
        folders: each made when it is wanted.
    """

    folders: tuple[Path, ...]

    def find(self, name: str) -> Path | None:
        """Where something of this name is kept; None for nowhere."""
        return next((path for folder in self.folders if (path := folder / name).exists()), None)

    def folder(self) -> Path:
        """The first folder that can be written to.

        Raises:
            ValueError: there is none; says why not of each.
        """
        refused = []
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / LOCK).touch()
            except OSError as error:
                refused.append(f"{folder} cannot be written to ({error})")
            else:
                return folder
        rule = "what is found in shards is kept, so one folder must be writable: that beside them, or data.cache.folder"
        raise ValueError(f"{'; '.join(refused)}: {rule}")

    def write(self, name: str, content: bytes) -> Path:
        """Keep something, in one step.

        Raises:
            ValueError: no folder can be written to, or the disk is full.
        """
        path = self.folder() / name
        partial = partial_path(path)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ValueError(f"{path} cannot be written ({error})") from error
        return path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process, on this host or another, is inside; one that dies lets go.

        What processes that died left half written is removed.

        Raises:
            ValueError: no folder can be written to.
        """
        folder = self.folder()
        _clean(folder)
        with (folder / LOCK).open("rb") as lock:
            # A file system without locks costs only that two may do the same work: all that is kept appears whole.
            with suppress(OSError):
                _lock(lock, folder)
            yield


def _lock(lock: BinaryIO, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waiting for another process that looks through shards and keeps it in %s", folder)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _clean(folder: Path) -> None:
    """Remove what processes of this host wrote on when they died."""
    start = PARTIAL.partition("{")[0]
    for path in folder.glob(f"*{start}*.tmp"):
        process = path.name.removesuffix(".tmp").rpartition("-")[2]
        if process.isdigit() and int(process) != os.getpid() and not _is_alive(int(process)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
