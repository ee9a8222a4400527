"""Tensors on disk: pieces in safetensors files, each file with a manifest that says what they are and their digests.

    weights/rank_00000.safetensors   pieces that one process wrote; any safetensors reader can open it
    weights/rank_00000.json          their names, places in the whole tensors, byte ranges and sha256

A manifest is written when its file is on disk. What is read is compared with its digest before it is used.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from flagscale_vla.config.checkpoint_files import DamagedError, write_durably
from flagscale_vla.mcore.pieces import Piece, Rectangle, Shape

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' spelling of what can be stored."""
SPELLING = {dtype: name for name, dtype in DTYPES.items()}
STRETCH = 16 * 2**20
"""Bytes hashed and written at a time: so many stay in a core's cache between the two."""
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPiece:
    """A piece and where its bytes are."""

    piece: Piece
    dtype: torch.dtype
    file: Path
    at: int
    """first byte in the file"""
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Length of its values in the file."""
        return self.piece.numel * self.dtype.itemsize


def write_pieces(folder: Path, stem: str, pieces: Iterable[tuple[Piece, Tensor]]) -> None:
    """Write `STEM.safetensors` and, once that is on disk, `STEM.json`.

    Args:
        folder: where to; it exists.
        stem: a name that no other process writes in this folder.
        pieces: each with its values: on the CPU, contiguous, as many as the piece has.

    Raises:
        OSError: the disk is full or fails.
    """
    held = list(pieces)
    header, places = _header([(piece, values.dtype) for piece, values in held])
    path = folder / f"{stem}.safetensors"
    lines = []
    with path.open("wb", buffering=0) as file:
        _write_all(file, memoryview(header))
        for (piece, values), at in zip(held, places, strict=True):
            lines.append(_line(piece, values.dtype, at, _write_hashed(file, values)))
        size = file.tell()
        os.fsync(file.fileno())
    manifest = {"bytes": size, "header": {"bytes": len(header), "sha256": sha256(header).hexdigest()}, "pieces": lines}
    write_durably(folder / f"{stem}.json", json.dumps(manifest))


def _header(pieces: list[tuple[Piece, torch.dtype]]) -> tuple[bytes, list[int]]:
    """The safetensors header, padded so that values begin aligned, and the first byte of each piece in the file."""
    entries, at = {}, 0
    starts = []
    for piece, dtype in pieces:
        stop = at + piece.numel * dtype.itemsize
        shape = piece.rectangle.shape if piece.is_whole_rectangle else (piece.numel,)
        entries[piece.label] = {"dtype": SPELLING[dtype], "shape": shape, "data_offsets": [at, stop]}
        starts.append(at)
        at = stop
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, [len(header) + start for start in starts]


def _write_hashed(file: FileIO, values: Tensor) -> str:
    """Write values and return the sha256 of their bytes."""
    digest = sha256()
    data = byte_view(values)
    for start in range(0, len(data), STRETCH):
        stretch = data[start : start + STRETCH]
        digest.update(stretch)
        _write_all(file, stretch)
    return digest.hexdigest()


def _write_all(file: FileIO, data: memoryview) -> None:
    """Write every byte: a raw file may take fewer at once."""
    while data:
        data = data[file.write(data) :]


def byte_view(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return values.detach().reshape(-1).view(torch.uint8).numpy().data


def _line(piece: Piece, dtype: torch.dtype, at: int, digest: str) -> dict[str, Any]:
    place = asdict(piece)
    place |= place.pop("rectangle")
    return {**place, "dtype": SPELLING[dtype], "at": at, "sha256": digest}


class WholeWriter:
    """Streams whole tensors into a folder; what is held is at most one file's worth.

    Use as a context manager; the last file is written when it is left without an error.
    """

    def __init__(self, folder: Path, max_bytes: int = 2**30) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._held: list[tuple[Piece, Tensor]] = []
        self._bytes = self._files = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, tensor: Tensor) -> None:
        """Take a contiguous tensor on the CPU; a full file is written at once."""
        shape = tuple(tensor.shape)
        piece = Piece(name=name, whole=shape, rectangle=Rectangle.whole(shape), start=0, stop=tensor.numel())
        self._held.append((piece, tensor))
        self._bytes += tensor.nbytes
        if self._bytes >= self.max_bytes:
            self._flush()

    def _flush(self) -> None:
        write_pieces(self.folder, f"rank_{self._files:05d}", self._held)
        self._held, self._bytes, self._files = [], 0, self._files + 1

    def __enter__(self) -> WholeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None and self._held:
            self._flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredFile:
    """One data file, as its manifest describes it."""

    path: Path
    num_bytes: int
    header_bytes: int
    header_sha256: str
    pieces: tuple[StoredPiece, ...]


def _read_manifest(path: Path) -> _StoredFile:
    data = path.with_suffix(".safetensors")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _StoredFile(
            path=data,
            num_bytes=content["bytes"],
            header_bytes=content["header"]["bytes"],
            header_sha256=content["header"]["sha256"],
            pieces=tuple(_stored_piece(line, data) for line in content["pieces"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} was damaged: it is no manifest of tensors ({error!r})") from error


def _stored_piece(line: dict[str, Any], file: Path) -> StoredPiece:
    rectangle = Rectangle(offset=tuple(line["offset"]), shape=tuple(line["shape"]))
    piece = Piece(
        name=line["name"], whole=tuple(line["whole"]), rectangle=rectangle, start=line["start"], stop=line["stop"]
    )
    return StoredPiece(piece=piece, dtype=DTYPES[line["dtype"]], file=file, at=line["at"], sha256=line["sha256"])


class StoredTensors:
    """What a folder of weights holds: whole tensors or parts of them, read when asked for, never unverified."""

    def __init__(self, folder: Path, files: list[_StoredFile]) -> None:
        self.folder = folder
        self._unchecked = {file.path: file for file in files}
        self._pieces: dict[str, dict[Rectangle, list[StoredPiece]]] = defaultdict(lambda: defaultdict(list))
        for file in files:
            for stored in file.pieces:
                self._pieces[stored.piece.name][stored.piece.rectangle].append(stored)
        for name in self._pieces:
            self._check_complete(name)

    @classmethod
    def open(cls, folder: Path) -> StoredTensors:
        """Read the manifests of a folder; they must describe whole tensors.

        Raises:
            DamagedError: naming the file, or the tensor of which something is missing.
        """
        files = [_read_manifest(path) for path in sorted(folder.glob("*.json"))]
        if not files:
            raise DamagedError(f"{folder} holds no tensors: there is no manifest (rank_*.json) in it")
        return cls(folder, files)

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._pieces)

    @property
    def weights(self) -> list[str]:
        """Names of the tensors that are a model's, sorted: an optimizer's state has a `/` in its names."""
        return [name for name in self.names if "/" not in name]

    def shape(self, name: str) -> Shape:
        """Shape of a whole tensor."""
        return self._first(name).piece.whole

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is stored as."""
        return self._first(name).dtype

    def read(self, name: str) -> Tensor:
        """A whole tensor.

        Raises:
            DamagedError: naming the tensor and the file.
        """
        return self.read_rectangle(name, Rectangle.whole(self.shape(name)))

    def read_rectangle(self, name: str, wanted: Rectangle) -> Tensor:
        """A block of a tensor, put together of the stored ones that it overlaps; raises as `read` does."""
        found = self._pieces[name]
        if wanted in found:
            return self._joined(found[wanted]).reshape(wanted.shape)
        result = torch.empty(wanted.shape, dtype=self.dtype(name))
        for rectangle, pieces in found.items():
            shared = rectangle.overlap(wanted)
            if shared is not None:
                block = self._joined(pieces).reshape(rectangle.shape)
                result[shared.within(wanted)] = block[shared.within(rectangle)]
        return result

    def read_run(self, name: str, rectangle: Rectangle, start: int, stop: int) -> Tensor:
        """Values [start, stop) of a block, flat; raises as `read` does."""
        pieces = self._pieces[name].get(rectangle)
        if pieces is None:
            return self.read_rectangle(name, rectangle).reshape(-1)[start:stop]
        needed = [stored for stored in pieces if stored.piece.start < stop and stored.piece.stop > start]
        first = needed[0].piece.start
        return self._joined(needed)[start - first : stop - first]

    def verify(self) -> None:
        """Read every byte once; raises as `read` does."""
        for name in self._pieces:
            for stored in self._of(name):
                self._values(stored)

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def _first(self, name: str) -> StoredPiece:
        return next(iter(self._pieces[name].values()))[0]

    def _joined(self, pieces: list[StoredPiece]) -> Tensor:
        parts = [self._values(stored) for stored in pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _values(self, stored: StoredPiece) -> Tensor:
        file = self._unchecked.get(stored.file)
        if file is not None:
            _check_file(file)
            del self._unchecked[stored.file]
        return _read_piece(stored)

    def _check_complete(self, name: str) -> None:
        """See that the pieces of a tensor cover it, each value once."""
        for pieces in self._pieces[name].values():
            pieces.sort(key=lambda stored: stored.piece.start)
        shape, dtype = self.shape(name), self.dtype(name)
        held = sum(_unbroken(rectangle, pieces) for rectangle, pieces in self._pieces[name].items())
        same = all(stored.dtype is dtype and stored.piece.whole == shape for stored in self._of(name))
        if held != Rectangle.whole(shape).numel or not same:
            raise DamagedError(
                f"{self.folder}: tensor {name} is not whole: {held} of {Rectangle.whole(shape).numel} values are there"
            )

    def _of(self, name: str) -> Iterable[StoredPiece]:
        return (stored for pieces in self._pieces[name].values() for stored in pieces)


def _unbroken(rectangle: Rectangle, pieces: list[StoredPiece]) -> int:
    """Values of a block that are there, if its pieces follow one another without a gap; else none."""
    starts = [stored.piece.start for stored in pieces]
    stops = [stored.piece.stop for stored in pieces]
    return rectangle.numel if starts == [0, *stops[:-1]] and stops[-1] == rectangle.numel else 0


def _check_file(file: _StoredFile) -> None:
    """Raises `DamagedError` where a data file is missing, of another length, or its header was changed."""
    labels = [stored.piece.label for stored in file.pieces] or ["(none)"]
    size = file.path.stat().st_size if file.path.is_file() else 0
    if size != file.num_bytes:
        lost = [stored.piece.label for stored in file.pieces if stored.at + stored.num_bytes > size]
        first = (lost or labels)[0]
        rule = f"{size} bytes are there, {file.num_bytes} were written"
        raise DamagedError(f"{file.path} was damaged: {rule}; tensor {first} is not whole")
    with file.path.open("rb") as data:
        header = data.read(file.header_bytes)
    if sha256(header).hexdigest() != file.header_sha256:
        names = ", tensor ".join(stored.piece.label for stored in file.pieces[:3])
        raise DamagedError(
            f"{file.path} was damaged: the header over tensor {names}, and so on, is not the one that was written"
        )


def verify_file(manifest: Path) -> None:
    """Read back one data file from the disk itself, where the system lets go of the copy in memory.

    Raises:
        DamagedError: naming the tensor that is not as it was written.
    """
    file = _read_manifest(manifest)
    with file.path.open("rb") as data:
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    _check_file(file)
    for stored in file.pieces:
        _read_piece(stored)


def _read_piece(stored: StoredPiece) -> Tensor:
    """The values of a piece, flat, once their digest is found to be the one that was written."""
    buffer = torch.empty(stored.num_bytes, dtype=torch.uint8)
    data = buffer.numpy().data
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.at)
        is_whole = _read_all(file, data)
    if not is_whole or sha256(data).hexdigest() != stored.sha256:
        raise DamagedError(
            f"{stored.file} was damaged: tensor {stored.piece.label} does not have the sha256 it was written with"
        )
    return buffer.view(stored.dtype)


def _read_all(file: FileIO, data: memoryview) -> bool:
    """Fill `data`; false where the file ends before."""
    while data:
        count = file.readinto(data)
        if not count:
            return False
        data = data[count:]
    return True
