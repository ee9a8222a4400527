"""Which rows of a packed sequence may see which: documents, context-parallel zigzag, and batches of equal shape.

A document is a run of rows that attends to itself alone: a sample in the language model, a window or an image in the
vision tower. `bounds` are its borders, as in `cu_seqlens`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Which rows of [S, ...] are `count` pieces of `length` rows."""

    count: int
    length: int
    rows: slice | Tensor
    """i64[count x length], or a slice where they follow one another, which needs no copy"""

    @staticmethod
    def of(pieces: list[Rows]) -> Places:
        """Pieces of equal length."""
        rows = np.concatenate(pieces)
        first = int(rows[0])
        follows = np.array_equal(rows, np.arange(first, first + len(rows)))
        return Places(
            count=len(pieces),
            length=len(pieces[0]),
            rows=slice(first, first + len(rows)) if follows else torch.from_numpy(rows),
        )

    def take(self, rows: Tensor) -> Tensor:
        """The pieces [count, length, ...] of `rows` [S, ...]."""
        chosen = rows[self.rows] if isinstance(self.rows, slice) else rows.index_select(0, self.rows.to(rows.device))
        return chosen.unflatten(0, (self.count, self.length))

    def put(self, total: Tensor, pieces: Tensor) -> None:
        """Write pieces [count, length, ...] to their rows of `total` [S, ...]."""
        total[self.rows] = pieces.flatten(0, 1)

    def add(self, total: Tensor, pieces: Tensor) -> None:
        """Add pieces [count, length, ...] to their rows of `total` [S, ...]; a row may occur more than once."""
        if isinstance(self.rows, slice):
            total[self.rows] += pieces.flatten(0, 1)
        else:
            total.index_add_(0, self.rows, pieces.flatten(0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pieces of equal shape, attended to in one call: queries, and the keys that they may see."""

    queries: Places
    keys: Places


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionPlan:
    """Groups that cover every query once; `restore` puts their results, laid end to end, back in row order."""

    groups: tuple[Group, ...]
    restore: Places

    def join(self, results: list[Tensor]) -> Tensor:
        """Results [B, Lq, ...] of every group, in row order [S, ...]."""
        return self.restore.take(torch.cat([result.flatten(0, 1) for result in results]))[0]


def zigzag_rows(length: int, size: int, rank: int) -> Rows:
    """Rows of a row of `length` tokens that context rank `rank` of `size` holds, i64[length / size].

    The row is cut in 2 x size pieces; a rank holds one from each end, so that causal work is even over ranks.
    """
    pieces = np.arange(length, dtype=np.int64).reshape(1 if size == 1 else 2 * size, -1)
    return pieces[0] if size == 1 else np.concatenate([pieces[rank], pieces[2 * size - 1 - rank]])


def _pieces(bounds: tuple[int, ...], rows: Rows, longest: int) -> list[tuple[int, int, int, int]]:
    """Cut local rows where a document or a run of consecutive rows ends, and every `longest` rows of a document.

    What is left at its end is not cut off where it is under half of that.

    Returns (local start, length, document's start, document's end) of each.
    """
    runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
    pieces = []
    for run in runs:
        first, last = int(rows[run[0]]), int(rows[run[-1]]) + 1
        for start, end in pairwise(bounds):
            low, high = max(start, first), min(end, last)
            cuts = [
                low,
                *(cut for cut in range(start + longest, end - longest // 2, longest) if low < cut < high),
                high,
            ]
            if low < high:
                pieces += [(int(run[0]) + cut - first, to - cut, start, end) for cut, to in pairwise(cuts)]
    return pieces


@lru_cache(maxsize=256)
def plan_attention(
    bounds: tuple[int, ...], length: int, causal: bool, size: int = 1, rank: int = 0, longest: int | None = None
) -> AttentionPlan:
    """Plan attention of one context rank's rows over the whole row of `length`.

    Keys are numbered in row order. A causal piece sees its document from the start to its own last row; with `longest`
    it has about as many rows at most, so that less is computed only to be masked.
    """
    rows = zigzag_rows(length, size, rank)
    groups: dict[tuple[int, int], list[tuple[Rows, Rows]]] = defaultdict(list)
    for local, count, start, end in _pieces(bounds, rows, longest if causal and longest else length):
        stop = int(rows[local]) + count if causal else end
        queries, keys = np.arange(local, local + count), np.arange(start, stop)
        groups[len(queries), len(keys)].append((queries, keys))
    return _stack(list(groups.values()))


@lru_cache(maxsize=256)
def plan_continuation(prefix: tuple[int, ...], bounds: tuple[int, ...]) -> AttentionPlan:
    """Plan attention of new rows that continue documents whose keys are kept.

    Keys are numbered prefix first, then new rows. Document n of `bounds` continues document n of `prefix`.
    """
    groups: dict[tuple[int, int], list[tuple[Rows, Rows]]] = defaultdict(list)
    for n in range(len(bounds) - 1):
        queries = np.arange(bounds[n], bounds[n + 1])
        keys = np.concatenate([np.arange(prefix[n], prefix[n + 1]), prefix[-1] + queries])
        groups[len(queries), len(keys)].append((queries, keys))
    return _stack(list(groups.values()))


@lru_cache(maxsize=1024)
def plan_extension(prefix: tuple[int, ...], bounds: tuple[int, ...]) -> tuple[Tensor, AttentionPlan]:
    """Plan attention of new rows whose keys are to be kept with those that they continue.

    Document n of `bounds`, which may have no rows, continues document n of `prefix`.

    Returns:
        i64[prefix[-1] + bounds[-1]], which of the prefix's rows and then the new ones comes where, so that each
        document's follow one another; and the plan, whose keys are numbered in that order.
    """
    order: list[Rows] = []
    groups: dict[tuple[int, int], list[tuple[Rows, Rows]]] = defaultdict(list)
    for n in range(len(bounds) - 1):
        queries = np.arange(bounds[n], bounds[n + 1])
        order += [np.arange(prefix[n], prefix[n + 1]), prefix[-1] + queries]
        if len(queries):
            keys = np.arange(prefix[n] + bounds[n], prefix[n + 1] + bounds[n + 1])
            groups[len(queries), len(keys)].append((queries, keys))
    return torch.from_numpy(np.concatenate(order)), _stack(list(groups.values()))


def _stack(groups: list[list[tuple[Rows, Rows]]]) -> AttentionPlan:
    stacked = tuple(
        Group(queries=Places.of([queries for queries, _ in group]), keys=Places.of([keys for _, keys in group]))
        for group in groups
    )
    order = np.concatenate([queries for group in groups for queries, _ in group])
    return AttentionPlan(groups=stacked, restore=Places.of([np.argsort(order)]))
