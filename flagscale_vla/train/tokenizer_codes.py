"""Which codes of each codebook are used, and how evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.data.actions import Chunks, RobotChunks
from flagscale_vla.robots.layout import Kind, parts_of
from flagscale_vla.train.tokenizer_errors import batches, entropy_bits

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BookUse:
    """One codebook, over training chunks of all robots."""

    kind: str
    layer: int
    """from 0, coarse, on"""
    codes: int
    used: int
    entropy: float
    """bits"""

    @property
    def share_used(self) -> float:
        """Share of the codes that any chunk has."""
        return self.used / self.codes

    @property
    def perplexity(self) -> float:
        """How many codes would be as uncertain if all were as frequent."""
        return float(2.0**self.entropy)


def books_of(tokenizer: OmniSat, chunks: Chunks) -> tuple[BookUse, ...]:
    """The use of every codebook by the chunks of all robots, kind by kind and coarse to fine."""
    counts: dict[tuple[Kind, int], Counts] = {}
    for robot in chunks.robots.values():
        for place, found in count_codes(tokenizer, robot).items():
            counts[place] = counts[place] + found if place in counts else found
    order = list(Kind)
    places = sorted(counts, key=lambda place: (order.index(place[0]), place[1]))
    return tuple(book_use(kind.value, layer, counts[kind, layer]) for kind, layer in places)


def count_codes(tokenizer: OmniSat, chunks: RobotChunks) -> dict[tuple[Kind, int], Counts]:
    """How often the chunks of one robot have each code, i64[codes] by kind and layer."""
    grammar = tokenizer.grammar(chunks.robot, chunks.values.shape[1])
    parts = parts_of(tokenizer.embodiments[chunks.robot])
    counts: dict[tuple[Kind, int], Counts] = {}
    for batch in batches(chunks):
        rows = np.stack(tokenizer.encode(batch.robot, batch.values, batch.starts)) - grammar.lows
        for column, (part, layer) in enumerate(tokenizer.places(chunks.robot)):
            found = np.bincount(rows[:, column], minlength=int(grammar.sizes[column]))
            place = (parts[part].kind, layer)
            counts[place] = counts[place] + found if place in counts else found
    return counts


def book_use(kind: str, layer: int, counts: NDArray[np.int64]) -> BookUse:
    """Of the counts i64[codes] of one codebook."""
    used = int(np.count_nonzero(counts))
    return BookUse(kind=kind, layer=layer, codes=len(counts), used=used, entropy=entropy_bits(counts))


def least_used(books: Sequence[BookUse]) -> float | None:
    """The smallest share of codes used of any codebook; None of none."""
    return min((book.share_used for book in books), default=None)
