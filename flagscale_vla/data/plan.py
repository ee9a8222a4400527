"""Which samples go together into a row, and in what order: a pure function of (lengths, row length, seed, epoch).

Samples are shuffled over all shards, then placed one by one into the fullest open row that still has room (best fit).
Rows stay open until they are full or too many are open, so what does not fit now is carried over to later rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPEN_ROWS = 64
"""Rows that wait for a sample that fits; enough for about 1 % of padding on mixed lengths."""
KEPT_EPOCHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The packs of one epoch; each sample is in exactly one."""

    samples: NDArray[np.int64]
    """i64[n], indices of all samples in reading order"""
    ends: NDArray[np.int64]
    """i64[packs], where each pack's samples end"""

    @property
    def num_packs(self) -> int:
        """Rows in the epoch."""
        return len(self.ends)

    def pack(self, number: int) -> NDArray[np.int64]:
        """Indices of the samples of one pack."""
        start = self.ends[number - 1] if number else 0
        return self.samples[start : self.ends[number]]


def plan_epoch(lengths: NDArray[np.int64], capacity: int, seed: int, epoch: int) -> EpochPlan:
    """Place every sample of an epoch.

    Args:
        lengths: i64[n] tokens of each sample, none above `capacity`.
        capacity: S, tokens of a row.
        seed: with
        epoch: the source of the order.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(len(lengths))
    packs = best_fit(order.tolist(), lengths[order].tolist(), capacity)
    ends = np.cumsum([len(members) for members in packs], dtype=np.int64)
    samples = np.fromiter((sample for members in packs for sample in members), np.int64, len(lengths))
    return EpochPlan(samples=samples, ends=ends)


def best_fit(order: list[int], lengths: list[int], capacity: int, open_rows: int = OPEN_ROWS) -> list[list[int]]:
    """Rows of at most `capacity`, in the order in which they are closed.

    Open rows are kept sorted as one integer each, room * 2**32 + row, so that a search finds the fullest that fits.
    """
    rows: list[list[int]] = []
    closed: list[int] = []
    waiting: list[int] = []
    shortest = min(lengths, default=0)
    for sample, length in zip(order, lengths, strict=True):
        place = bisect_left(waiting, length << 32)
        if place < len(waiting):
            room, row = divmod(waiting.pop(place), 1 << 32)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(sample)
        room -= length
        if room < shortest:
            closed.append(row)
            continue
        insort(waiting, (room << 32) + row)
        if len(waiting) > open_rows:
            closed.append(waiting.pop(0) & 0xFFFFFFFF)
    closed += sorted(entry & 0xFFFFFFFF for entry in waiting)
    return [rows[row] for row in closed]


class Plan:
    """The endless sequence of packs over all epochs, open at any number.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(self, lengths: NDArray[np.int64], capacity: int, seed: int) -> None:
        if len(lengths) == 0:
            raise ValueError("there are no samples to plan")
        self.lengths, self.capacity, self.seed = lengths, capacity, seed
        self._epochs: dict[int, EpochPlan] = {}
        self._firsts = [0]

    def pack(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, indices of samples) of a pack, counted from the start of training."""
        while number >= self._firsts[-1]:
            epoch = len(self._firsts) - 1
            self._firsts.append(self._firsts[-1] + self.epoch(epoch).num_packs)
        epoch = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return epoch, self.epoch(epoch).pack(number - self._firsts[epoch])

    def epoch(self, epoch: int) -> EpochPlan:
        """The packs of one epoch; the last two asked for are kept."""
        if epoch not in self._epochs:
            while len(self._epochs) >= KEPT_EPOCHS:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = plan_epoch(self.lengths, self.capacity, self.seed, epoch)
        return self._epochs[epoch]
