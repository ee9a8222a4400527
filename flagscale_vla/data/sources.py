"""The datasets of a mixture, and what of each is packed: whole samples, and pieces of those that are too long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.faults import Fault
from flagscale_vla.data.index import Index
from flagscale_vla.data.place import Place
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.store import Store
from flagscale_vla.records import RawSample

PIECE_MARK = "#"
"""Stands between the key of a sample and the number of a piece; no key holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One dataset of a mixture."""

    name: str
    """empty where it is alone: keys of its samples then begin with the shard"""
    index: Index
    """of its training shards"""

    def label(self, shard: str) -> str:
        """How a shard is called in keys and lists of faults."""
        return label(self.name, shard)

    def sound(self) -> dict[str, int]:
        """Samples of each shard that can be used."""
        index = self.index
        counts = np.bincount(index.shard, minlength=len(index.shards)).tolist()
        return {self.label(shard): count for shard, count in zip(index.shards, counts, strict=True)}


def label(source: str, shard: str) -> str:
    """`SOURCE/SHARD`, or the shard alone for a source without a name."""
    return f"{source}/{shard}" if source else shard


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a sample: its segments [begin, end)."""

    number: int
    begin: int
    end: int

    def of(self, raw: RawSample) -> RawSample:
        """The part of `raw`, with a key of its own."""
        return RawSample(key=f"{raw.key}{PIECE_MARK}{self.number}", segments=raw.segments[self.begin : self.end])


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """What of a source is packed."""

    samples: NDArray[np.int64]
    """i64[n] the sample that each comes from"""
    lengths: NDArray[np.int64]
    """i64[n] tokens"""
    pieces: tuple[Piece, ...]
    """of the last items; those before are whole samples"""
    faults: tuple[Fault, ...]
    """what does not fit into a row; shards as they are called in the source"""

    def piece(self, item: int) -> Piece | None:
        """Which part of its sample an item is; None for all of it."""
        number = item - (len(self.samples) - len(self.pieces))
        return self.pieces[number] if number >= 0 else None


class Order(NamedTuple):
    """One item to read: everything that a worker needs to know."""

    source: int
    """its number"""
    place: Place
    epoch: int
    piece: Piece | None
    tokens: int
    """that it has at most, by the index"""


def read_item(source: str, store: Store, order: Order) -> RawSample:
    """The sample, or piece of one, that an order of the source of that name asks for.

    Raises:
        BadSampleError: its bytes cannot be had, or hold no whole sample.
    """
    raw = read_sample(store, order.place)
    raw = RawSample(key=label(source, raw.key), segments=raw.segments)
    return order.piece.of(raw) if order.piece else raw


def open_items(source: Source, capacity: int, *, split: bool) -> Items:
    """Samples of at most `capacity` tokens, and with `split` the pieces of longer ones that have at most as many."""
    index = source.index
    whole = np.flatnonzero(index.lengths <= capacity)
    if not split:
        return Items(
            samples=whole, lengths=index.lengths[whole], pieces=(), faults=_labelled(source, index.too_long(capacity))
        )
    long = np.flatnonzero(index.lengths > capacity).tolist()
    cut = [found for sample in long for found in cut_sample(index, sample, capacity)]
    fitting = [(sample, piece, length) for sample, piece, length in cut if length <= capacity]
    return Items(
        samples=np.concatenate([whole, np.asarray([sample for sample, _, _ in fitting], np.int64)]),
        lengths=np.concatenate([index.lengths[whole], np.asarray([length for _, _, length in fitting], np.int64)]),
        pieces=tuple(piece for _, piece, _ in fitting),
        faults=tuple(
            _unfit(source, sample, piece, length, capacity) for sample, piece, length in cut if length > capacity
        ),
    )


def cut_sample(index: Index, sample: int, capacity: int) -> Iterator[tuple[int, Piece, int]]:
    """(sample, piece, tokens) of each piece: as many user's turns, with their answers, as fit, one at least.

    Every piece begins with the system's turn, and knows nothing of what was said before.
    """
    start, stop = index.segment_starts[sample : sample + 2].tolist()
    tokens = np.concatenate([[0], np.cumsum(index.segments[start:stop])])
    system = int(index.lengths[sample] - tokens[-1])
    edges = [0, *(np.flatnonzero(index.cuts[start:stop][1:]) + 1).tolist(), stop - start]
    begin = number = 0
    for end, following in zip(edges[1:], [*edges[2:], None], strict=True):
        if following is None or system + tokens[following] - tokens[begin] > capacity:
            yield sample, Piece(number, begin, end), int(system + tokens[end] - tokens[begin])
            begin, number = end, number + 1


def _labelled(source: Source, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    return tuple(Fault(shard=source.label(fault.shard), member=fault.member, reason=fault.reason) for fault in faults)


def _unfit(source: Source, sample: int, piece: Piece, length: int, capacity: int) -> Fault:
    index = source.index
    return Fault(
        shard=source.label(index.shards[index.shard[sample]]),
        member=f"{index.keys[sample]}{PIECE_MARK}{piece.number}",
        reason=f"one turn and its answer have {length} tokens; data.pack_length={capacity} is shorter",
    )


def find_faults(source: Source) -> tuple[Fault, ...]:
    """What the index found unusable."""
    return _labelled(source, source.index.faults)


def find_sample(sources: tuple[Source, ...], key: str) -> tuple[Source, int]:
    """The source of a sample and its number there, from the key that it has in a row.

    Raises:
        LookupError: there is no such sample.
    """
    label, _, member = key.rpartition("/")
    name, _, shard = label.rpartition("/")
    member = member.partition(PIECE_MARK)[0]
    for source in sources:
        if source.name == name and shard in source.index.shards:
            own = np.flatnonzero(source.index.shard == source.index.shards.index(shard))
            for number in own.tolist():
                if source.index.keys[number] == member:
                    return source, number
    raise LookupError(f"there is no sample {key}")
