"""Which samples share a row, and in what order rows come so that ranks have about equal work.

A bounded pool of samples waits to be packed. A row begins with one of them, goes on in the order of reading, and ends
with those that fill it best. What does not fit now is carried over to later rows: no buffer is flushed on the way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

OLDEST_EVERY = 4
"""Every so many rows one begins with the sample that waits longest, the others with the longest sample.

Always the longest would leave the middle lengths to pile up in the pool; always the oldest wastes rows at their end.
"""
SLACK = 1 / 200
"""Share of a row that may stay empty before a better pair of samples is looked for."""
PAIRS = 64
"""How many pairs are looked at; enough for a pool of any size, and what bounds the time."""
KNEE = 42_000
"""Tokens of a segment at which its attention costs as much as all the rest, for Qwen2.5's 3B language model.

A token costs 6 FLOPs per parameter forward and backward, a causal segment 6 x layers x hidden x length^2: with 3.09e9
parameters, 36 layers and a width of 2,048 both are equal at 41,900. Larger models have a later knee (7B 76,000).
"""
BAND = 0.04
"""Rows whose costs differ by no more than this share count as equal."""
BLOCK = 48
"""Rows of about equal cost that come one after another. 1, 2, 3, 4, 6, 8, 12, 16, 24 and 48 ranks divide it."""

_LOW = (1 << 32) - 1


class _Pool:
    """Samples that wait, sorted by length. Each is one integer, length * 2**32 + number: no search needs a key."""

    def __init__(self, lengths: Sequence[int], capacity: int, size: int) -> None:
        self.lengths, self.capacity, self.size = lengths, capacity, size
        self.waiting: list[int] = []
        self._next = self._oldest = self._rows = 0
        self._placed = bytearray(len(lengths))
        self._refill()

    def _refill(self) -> None:
        """Take in samples until `size` wait or there are no more."""
        end = min(len(self.lengths), self._next + self.size - len(self.waiting))
        for number in range(self._next, end):
            insort(self.waiting, (self.lengths[number] << 32) + number)
        self._next = end

    def row(self) -> list[int]:
        """Numbers of the samples of the next row; the pool must not be empty."""
        self._rows += 1
        members = [self._take(self.waiting[-1]) if self._rows % OLDEST_EVERY else self._take_oldest()]
        room = self.capacity - self.lengths[members[0]]
        # While whatever waits fits twice, the order of reading is kept; only a row's end is chosen.
        while self.waiting and room > 2 * (self.waiting[-1] >> 32):
            members.append(self._take_oldest())
            room -= self.lengths[members[-1]]
            self._refill()
        chosen, left = self._greedy([], room, len(self.waiting))
        if left > SLACK * self.capacity:
            chosen = self._better(room, left) or chosen
        members += [self._take(entry) for entry in [self.waiting[place] for place in chosen]]
        self._refill()
        return members

    def _take_oldest(self) -> int:
        """Remove the sample that waits longest."""
        self._oldest = self._placed.index(0, self._oldest)
        return self._take((self.lengths[self._oldest] << 32) + self._oldest)

    def _take(self, entry: int) -> int:
        """Remove one sample; its number."""
        del self.waiting[bisect_left(self.waiting, entry)]
        self._placed[entry & _LOW] = 1
        return entry & _LOW

    def _greedy(self, chosen: list[int], room: int, below: int) -> tuple[list[int], int]:
        """Add the longest that fits, again and again: (places, falling; room left)."""
        waiting = self.waiting
        while room and (below := bisect_right(waiting, (room << 32) + _LOW, 0, below)):
            below -= 1
            chosen.append(below)
            room -= waiting[below] >> 32
        return chosen, room

    def _better(self, room: int, left: int) -> list[int]:
        """A pair that leaves less than `left`, and what still fits beside it; nothing where none is found.

        The search begins with two halves of the room and goes outwards, so that short samples are kept for later.
        """
        waiting, pair, most = self.waiting, [], self.capacity * SLACK
        high = bisect_right(waiting, (room // 2 << 32) + _LOW)
        low = high - 1
        for _ in range(PAIRS):
            if low < 0 or high == len(waiting):
                break
            gap = room - (waiting[low] >> 32) - (waiting[high] >> 32)
            if gap < 0:
                low -= 1
                continue
            if gap < left:
                left, pair = gap, [high, low]
                if left <= most:
                    break
            high += 1
        return self._greedy(pair, left, pair[-1])[0] if pair else []


def pack_pooled(lengths: Sequence[int], capacity: int, size: int) -> list[list[int]]:
    """Rows of at most `capacity` tokens, each a list of numbers of samples; every sample is in exactly one.

    Args:
        lengths: tokens of each sample in reading order, none above `capacity`.
        capacity: S, tokens of a row.
        size: samples that wait to be packed, at least 1.
    """
    pool = _Pool(lengths, capacity, size)
    rows = []
    while pool.waiting:
        rows.append(pool.row())
    return rows


def row_costs(lengths: NDArray[np.int64], ends: NDArray[np.int64], capacity: int) -> NDArray[np.float64]:
    """What each row costs to train on, f64[rows] in tokens: S, and attention that grows with a segment's square.

    Args:
        lengths: i64[n] tokens of the samples, row after row.
        ends: i64[rows] where each row's samples end.
        capacity: S. Padding is a segment of its own.
    """
    starts = np.concatenate([[0], ends[:-1]])
    padding = capacity - np.add.reduceat(lengths, starts)
    # Whole numbers up to the one division, so that every machine finds the same.
    return capacity + (np.add.reduceat(lengths**2, starts) + padding**2) / KNEE


def arrange(costs: NDArray[np.float64], first: int) -> NDArray[np.int64]:
    """An order of rows in which neighbours cost about the same, though costs do not rise or fall over the whole.

    Rows wait by cost in bands; whenever a band has `BLOCK` rows, they go out together. So R ranks that take R rows at a
    time, where R divides `BLOCK`, have equal work. Those left in the end go out by cost.

    Args:
        costs: f64[rows] in reading order.
        first: how many rows came before; blocks begin at its multiples of `BLOCK`.

    Returns:
        i64[rows], numbers of rows.
    """
    bands = _bands(costs)
    blocks: list[NDArray[np.int64]] = []
    loose: list[NDArray[np.int64]] = []
    for band in np.unique(bands):
        rows = np.flatnonzero(bands == band)
        whole = len(rows) - len(rows) % BLOCK
        blocks += list(rows[:whole].reshape(-1, BLOCK))
        loose.append(rows[whole:])
    blocks.sort(key=lambda rows: int(rows[-1]))
    head = -first % BLOCK
    while blocks and sum(map(len, loose)) < head:
        loose.append(blocks.pop())
    rest = np.concatenate([*loose, np.empty(0, np.int64)])
    rest = rest[np.argsort(costs[rest], kind="stable")]
    return np.concatenate([rest[:head], *blocks, rest[head:]])


def _bands(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which band each cost is in, i64[rows]. Edges are products: a logarithm's last bit is not the same everywhere."""
    edges = [float(costs.min())]
    while edges[-1] < costs.max():
        edges.append(edges[-1] * (1 + BAND))
    return np.searchsorted(edges, costs, side="right").astype(np.int64)
