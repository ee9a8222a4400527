"""Memory through which workers hand over pixels: made once and written over, for new memory costs as much as a copy.

Every worker has `ROOMS` of them and takes them in turn. The loader asks it for a row only while fewer than `READ_AHEAD`
of its rows wait to be taken, and copies a row's pixels out before it asks for two more: what a worker writes over has
been copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from flagscale_vla.config.checks import check
from flagscale_vla.config.model import PATCH_MERGE, PATCH_PIXELS

READ_AHEAD = 4
"""Rows each worker has ready or in work."""
ROOMS = READ_AHEAD + 1
"""The one more is being copied out."""
TOKEN_BYTES = 3 * (PATCH_MERGE * PATCH_PIXELS) ** 2
"""Pixels of a picture behind one of its tokens. A film has up to twice as many."""

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Lent:
    """Where a worker left the pixels of a row."""

    worker: int
    turn: int
    """of this worker, which says the room"""
    start: int
    stop: int


class Rooms:
    """The rooms of all workers of one loader; empty for none.

    Args:
        workers: how many there are.
        tokens: of a row.

    Raises:
        ConfigError: there is too little shared memory.
    """

    def __init__(self, workers: int, tokens: int) -> None:
        check_shared_memory(workers, workers * ROOMS * tokens * TOKEN_BYTES)
        self._bytes = torch.empty(workers, ROOMS, tokens * TOKEN_BYTES, dtype=torch.uint8).share_memory_()
        self._turns = torch.zeros(workers, ROOMS, dtype=torch.int64).share_memory_()
        self._turn = 0

    def cut(self, sizes: Mapping[int, int]) -> dict[int, Tensor]:
        """Memory u8[size] for each, end to end. In a worker it is the next room's, where that is large enough."""
        memory = self._next(sum(sizes.values()))
        return dict(zip(sizes, memory.split(list(sizes.values())), strict=True)) if sizes else {}

    def _next(self, nbytes: int) -> Tensor:
        found = get_worker_info()
        if found is None or nbytes > self._bytes.shape[-1]:
            return large(nbytes)
        self._turn += 1
        self._turns[found.id, self._turn % ROOMS] = self._turn
        return self._bytes[found.id, self._turn % ROOMS, :nbytes]

    def lend(self, pixels: Tensor) -> Lent | None:
        """Where these pixels u8[B] lie, if that is in the room that was cut last."""
        found = get_worker_info()
        if found is None:
            return None
        room = self._bytes[found.id, self._turn % ROOMS]
        start = pixels.data_ptr() - room.data_ptr()
        inside = start >= 0 and start + pixels.numel() <= room.numel()
        return Lent(found.id, self._turn, start, start + pixels.numel()) if inside else None

    def take(self, lent: Lent, pin: bool) -> Tensor:
        """A copy u8[B] of what a worker left, in page-locked memory if asked for.

        Raises:
            RuntimeError: it was written over, which the order of rows rules out.
        """
        room = lent.turn % ROOMS
        nbytes = lent.stop - lent.start
        pixels = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) if pin else large(nbytes)
        pixels.copy_(self._bytes[lent.worker, room, lent.start : lent.stop])
        if self._turns[lent.worker, room] != lent.turn:
            raise RuntimeError(f"worker {lent.worker} wrote over pixels that were not taken yet")
        return pixels


def check_shared_memory(workers: int, nbytes: int) -> None:
    """Refuse more workers than `/dev/shm` has room for; a container's is 64 MiB unless it is told otherwise."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else nbytes
    found = f"{nbytes >> 20} MiB of {SHARED_MEMORY}, which has {free >> 20}"
    rule = f"workers hand over rows in {found}; docker run --shm-size gives more"
    check(nbytes <= free, "data.workers", workers, rule, workers * free // max(nbytes, 1))


def large(nbytes: int) -> Tensor:
    """Memory u8[nbytes]. NumPy asks the system for huge pages (MADV_HUGEPAGE), torch does not.

    Measured on 6 MB that are made, written and given back: 0.3 ms with huge pages, 1.9 ms without.
    """
    return torch.from_numpy(np.empty(nbytes, np.uint8))
