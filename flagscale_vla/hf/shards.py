"""Writing safetensors files tensor by tensor: their sizes are planned first, so that nothing is held back."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from flagscale_vla.hf.source import INDEX_FILE, WEIGHTS_FILE
from flagscale_vla.mcore.storage import ALIGNMENT, SPELLING, byte_view


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Length of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def split_files(groups: Sequence[Sequence[Planned]], max_bytes: int) -> dict[str, list[Planned]]:
    """Which file each tensor goes to: file name to its tensors, in the given order.

    Args:
        groups: tensors that are made together; a group stays in one file.
        max_bytes: most bytes of tensors in a file, unless one group alone has more.
    """
    files: list[list[Planned]] = [[]]
    room = max_bytes
    for group in groups:
        size = sum(tensor.num_bytes for tensor in group)
        if size > room and files[-1]:
            files.append([])
            room = max_bytes
        files[-1] += group
        room -= size
    if len(files) == 1:
        return {WEIGHTS_FILE: files[0]}
    return {f"model-{n:05d}-of-{len(files):05d}.safetensors": file for n, file in enumerate(files, start=1)}


def write_index(folder: Path, files: dict[str, list[Planned]]) -> None:
    """Write the index that tells readers which file holds which tensor; a single file needs none."""
    if len(files) == 1:
        return
    total = sum(tensor.num_bytes for tensors in files.values() for tensor in tensors)
    weight_map = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class ShardWriter:
    """Takes planned tensors in their order and puts each into its file. Use as a context manager."""

    def __init__(self, folder: Path, files: dict[str, list[Planned]]) -> None:
        self._pending = _walk(folder, files)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, which must be the planned one."""
        file, planned = next(self._pending)
        assert (planned.name, planned.shape, planned.dtype) == (name, tuple(tensor.shape), tensor.dtype), planned
        file.write(byte_view(tensor.contiguous()))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            assert next(self._pending, None) is None, "not every planned tensor was written"
        self._pending.close()


def _walk(folder: Path, files: dict[str, list[Planned]]) -> Generator[tuple[BinaryIO, Planned], None, None]:
    for name, tensors in files.items():
        with _opened(folder / name, tensors) as file:
            for tensor in tensors:
                yield file, tensor


@contextmanager
def _opened(path: Path, tensors: Sequence[Planned]) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        file.write(header(tensors))
        yield file
        file.flush()
        os.fsync(file.fileno())


def header(tensors: Sequence[Planned]) -> bytes:
    """What a safetensors file begins with (its specification: length, JSON, padding)."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        stop = at + tensor.num_bytes
        entries[tensor.name] = {"dtype": SPELLING[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
