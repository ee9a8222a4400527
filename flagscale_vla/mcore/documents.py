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
class Group:
    """Pieces of equal shape, attended to in one call: queries i64[B, Lq] and the keys they may see i64[B, Lk]."""

    queries: Tensor
    keys: Tensor

    def take_queries(self, rows: Tensor) -> Tensor:
        """The queries' rows [B, Lq, ...] of `rows` [S, ...]."""
        return _take(rows, self.queries)

    def take_keys(self, rows: Tensor) -> Tensor:
        """The keys' rows [B, Lk, ...] of `rows` [S, ...]."""
        return _take(rows, self.keys)


def _take(rows: Tensor, places: Tensor) -> Tensor:
    """Rows at `places` i64[B, L]; without a copy where they follow one another."""
    first, count = int(places[0, 0]), places.numel()
    if torch.equal(places.flatten(), torch.arange(first, first + count)):
        return rows[first : first + count].unflatten(0, tuple(places.shape))
    return rows.index_select(0, places.flatten().to(rows.device)).unflatten(0, tuple(places.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Groups that cover every query once; `restore` i64[rows] puts their results back in row order."""

    groups: tuple[Group, ...]
    restore: Tensor

    def join(self, results: list[Tensor]) -> Tensor:
        """Results [B, Lq, ...] of every group, in row order [S, ...]."""
        rows = [result.flatten(0, 1) for result in results]
        whole = rows[0] if len(rows) == 1 else torch.cat(rows)
        return _take(whole, self.restore[None])[0]


def zigzag_rows(length: int, size: int, rank: int) -> Rows:
    """Rows of a row of `length` tokens that context rank `rank` of `size` holds, i64[length / size].

    The row is cut in 2 x size pieces; a rank holds one from each end, so that causal work is even over ranks.
    """
    pieces = np.arange(length, dtype=np.int64).reshape(1 if size == 1 else 2 * size, -1)
    return pieces[0] if size == 1 else np.concatenate([pieces[rank], pieces[2 * size - 1 - rank]])


def _pieces(bounds: tuple[int, ...], rows: Rows) -> list[tuple[int, int, int, int]]:
    """Cut local rows where a document ends or a run of consecutive rows does: (local start, length, document)."""
    runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
    pieces = []
    for run in runs:
        first, last = int(rows[run[0]]), int(rows[run[-1]]) + 1
        for start, end in pairwise(bounds):
            low, high = max(start, first), min(end, last)
            if low < high:
                pieces.append((int(run[0]) + low - first, high - low, start, end))
    return pieces


@lru_cache(maxsize=256)
def plan_attention(bounds: tuple[int, ...], length: int, causal: bool, size: int = 1, rank: int = 0) -> AttentionPlan:
    """Plan attention of one context rank's rows over the whole row of `length`.

    Keys are numbered in row order. A causal piece sees its document from the start to its own last row.
    """
    rows = zigzag_rows(length, size, rank)
    groups: dict[tuple[int, int], list[tuple[Rows, Rows]]] = defaultdict(list)
    for local, count, start, end in _pieces(bounds, rows):
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


def _stack(groups: list[list[tuple[Rows, Rows]]]) -> AttentionPlan:
    stacked = tuple(
        Group(
            queries=torch.from_numpy(np.stack([queries for queries, _ in group])),
            keys=torch.from_numpy(np.stack([keys for _, keys in group])),
        )
        for group in groups
    )
    order = torch.cat([group.queries.reshape(-1) for group in stacked])
    return AttentionPlan(groups=stacked, restore=torch.argsort(order))
