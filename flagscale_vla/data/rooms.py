"""Memory through which workers hand over rows: made once and lent again, for new memory costs as much as a copy.

A row is asked for together with a room that is free. Its worker writes the row there, and the row that is given out
lies in the room itself until nothing of it is held any more. So that there is a room for the next row however many are
held, the row that would leave none free is copied out.
"""

from __future__ import annotations

import shutil
import weakref
from collections import deque
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flagscale_vla.config.checks import check
from flagscale_vla.config.model import PATCH_MERGE, PATCH_PIXELS

READ_AHEAD = 4
"""Rows each worker has ready or in work."""
SPARE = 3
"""Rooms of rows that are given out: one being used, one just taken, one that is free for the next."""
PIXEL_BYTES = 3 * (PATCH_MERGE * PATCH_PIXELS) ** 2
"""Pixels of a picture behind one of its tokens. A film has up to twice as many."""
TOKEN_BYTES = PIXEL_BYTES + 64
"""The same with all else that belongs to a token: its id, label, position and slot."""
ALIGNED = 64
"""Tensors begin at multiples of so many bytes, a cache line's."""
SHARED_MEMORY = Path("/dev/shm")


class Laid(NamedTuple):
    """A tensor in a room."""

    start: int
    """byte it begins at"""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Byte behind its last."""
        return self.start + prod(self.shape) * self.dtype.itemsize

    def read(self, memory: Tensor) -> Tensor:
        """The tensor in the room's memory u8[B]."""
        return memory[self.start : self.stop].view(self.dtype).view(self.shape)


class Room:
    """Where one row is put together.

    Args:
        memory: u8[B] that is lent; empty to use new memory.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory

    def cut(self, sizes: Mapping[int, int]) -> dict[int, Tensor]:
        """Memory u8[size] for each, end to end, of the room's if that is large enough."""
        nbytes = sum(sizes.values())
        memory = self._memory[:nbytes] if nbytes <= self._memory.numel() else large(nbytes)
        return dict(zip(sizes, memory.split(list(sizes.values())), strict=True)) if sizes else {}

    def lay(self, tensors: Mapping[str, Tensor]) -> dict[str, Laid] | None:
        """Where these tensors are in the room, copied there if they were not; None if they do not fit."""
        held = {name: self._held(tensor) for name, tensor in tensors.items() if self._holds(tensor)}
        free = max((place.stop for place in held.values()), default=0)
        added = arrange({name: tensor for name, tensor in tensors.items() if name not in held}, free)
        if max((place.stop for place in added.values()), default=0) > self._memory.numel():
            return None
        for name, place in added.items():
            place.read(self._memory).copy_(tensors[name])
        return held | added

    def _holds(self, tensor: Tensor) -> bool:
        start = tensor.data_ptr() - self._memory.data_ptr()
        return start >= 0 and start + tensor.nbytes <= self._memory.numel()

    def _held(self, tensor: Tensor) -> Laid:
        return Laid(tensor.data_ptr() - self._memory.data_ptr(), tensor.dtype, tuple(tensor.shape))


def arrange(tensors: Mapping[str, Tensor], start: int) -> dict[str, Laid]:
    """Places for these tensors one behind the other, from a byte on."""
    places: dict[str, Laid] = {}
    for name, tensor in tensors.items():
        places[name] = Laid(-(-start // ALIGNED) * ALIGNED, tensor.dtype, tuple(tensor.shape))
        start = places[name].stop
    return places


class Rooms:
    """The rooms of one loader, and which of them are free.

    Args:
        workers: processes that read; none needs none.
        tokens: of a row.

    Raises:
        ConfigError: there is too little shared memory.
    """

    def __init__(self, workers: int, tokens: int) -> None:
        count, nbytes = workers * READ_AHEAD + SPARE if workers else 0, tokens * TOKEN_BYTES
        check_shared_memory(workers, count, nbytes)
        self.memory = torch.empty(count, nbytes, dtype=torch.uint8).share_memory_()
        """u8[rooms, B]; all that a worker needs"""
        self._free = deque(range(count))

    def lend(self) -> int | None:
        """A free room, for one row; None where rows are read here."""
        return self._free.popleft() if len(self.memory) else None

    def free(self, room: int) -> None:
        """Take back a room in which nothing was left."""
        self._free.append(room)

    def take(self, room: int, laid: Mapping[str, Laid], pin: bool) -> dict[str, Tensor]:
        """What a worker left in a room, which is free again as soon as nothing of that is held.

        Where no other room would be free for the next row, and to pin it in page-locked memory, it is copied.
        """
        held = self.memory[room].numpy()
        # All of a row's tensors share one storage, which holds this array: numpy's own views of it would not.
        memory = torch.from_numpy(held)
        weakref.finalize(held, self._free.append, room).atexit = False
        del held
        tensors = {name: place.read(memory) for name, place in laid.items()}
        if pin:
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors if self._free else {name: copied(tensor) for name, tensor in tensors.items()}


def copied(tensor: Tensor) -> Tensor:
    """A copy in new memory."""
    return large(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)


def check_shared_memory(workers: int, count: int, nbytes: int) -> None:
    """Refuse more workers than `/dev/shm` holds rooms for; a container's is 64 MiB unless it is told otherwise.

    Args:
        workers: that ask for them.
        count: rooms of all.
        nbytes: of a room.
    """
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else count * nbytes
    found = f"{count * nbytes >> 20} MiB of {SHARED_MEMORY}, which has {free >> 20}"
    rule = f"workers hand over rows in {found}; docker run --shm-size gives more"
    check(count * nbytes <= free, "data.workers", workers, rule, max(free // nbytes - SPARE, 0) // READ_AHEAD)


def large(nbytes: int) -> Tensor:
    """Memory u8[nbytes]. NumPy asks the system for huge pages (MADV_HUGEPAGE), torch does not.

    Measured on 6 MB that are made, written and given back: 0.3 ms with huge pages, 1.9 ms without.
    """
    return torch.from_numpy(np.empty(nbytes, np.uint8))
