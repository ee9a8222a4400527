"""Writing this rank's pieces while training goes on: a copy is taken at once, and a thread hashes and writes it.

The thread needs no lock: hashing and writing release Python's, and nobody touches the copy but the next save.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from flagscale_vla.mcore.pieces import Piece
from flagscale_vla.mcore.state import Pieces
from flagscale_vla.mcore.storage import ALIGNMENT, verify_file, write_pieces


class Saver:
    """One rank's writer, with room for one copy of what it writes."""

    def __init__(self, rank: int) -> None:
        self.stem = f"rank_{rank:05d}"
        self._room: Future[Tensor] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")

    def prepare(self, pieces: Pieces) -> None:
        """Make room for a copy of pieces, in the thread: the first touch of a page costs more than its copy."""
        on_gpu = any(values.is_cuda for _, values in pieces)
        self._room = self._thread.submit(_make_room, sum(_sizes(pieces)), on_gpu)

    def write(self, folder: Path, pieces: Pieces) -> None:
        """Write pieces and return when they are on disk and were read back.

        Raises:
            OSError: the disk is full or fails.
            DamagedError: what was read back is not what was written.
        """
        _write(folder, self.stem, [(piece, _on_host(values)) for piece, values in pieces])

    def start(self, folder: Path, pieces: Pieces) -> Future[None]:
        """Copy pieces now and write them in a thread; the result raises what `write` does.

        One save at a time: the caller waits for one before it starts the next.
        """
        return self._thread.submit(_write, folder, self.stem, self._copy(pieces))

    def _copy(self, pieces: Pieces) -> Pieces:
        """Pieces in the room, which is kept from save to save."""
        sizes = _sizes(pieces)
        if self._room is None or len(self._room.result()) < sum(sizes):
            self.prepare(pieces)
        assert self._room is not None
        copies: list[tuple[Piece, Tensor]] = []
        for (piece, values), place in zip(pieces, self._room.result()[: sum(sizes)].split(sizes), strict=True):
            copy = place[: values.nbytes].view(values.dtype)
            copy.copy_(values, non_blocking=True)
            copies.append((piece, copy))
        if any(values.is_cuda for _, values in pieces):
            torch.cuda.synchronize()
        return copies

    def close(self) -> None:
        """Wait for what is being written, and end the thread."""
        self._thread.shutdown()


def _make_room(num_bytes: int, on_gpu: bool) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu).zero_()


def _sizes(pieces: Pieces) -> list[int]:
    """Room for each piece, such that the next one begins where any dtype may."""
    return [-(-values.nbytes // ALIGNMENT) * ALIGNMENT for _, values in pieces]


def _on_host(values: Tensor) -> Tensor:
    return values.detach().cpu().contiguous()


def _write(folder: Path, stem: str, pieces: Sequence[tuple[Piece, Tensor]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_pieces(folder, stem, pieces)
    verify_file(folder / f"{stem}.json")
