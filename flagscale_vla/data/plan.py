"""Which samples go together into a row, and in what order: a pure function of (lengths, weights, settings, seed, era).

The rows of an era are planned at once: its samples are drawn, packed through a pool, and the rows put in an order in
which neighbours cost about the same. No era needs those before it but for one number, how many rows they had; a
`Position` holds it, so that a run goes on anywhere at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.mixture import ROWS, Mixture, generator
from flagscale_vla.data.pooled import arrange, pack_pooled, row_costs

KEPT_ERAS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands in the sequence of rows. `packs` alone says it; the others save looking for it."""

    packs: int = 0
    """rows before it, over all ranks"""
    era: int = 0
    """an era that begins there or before"""
    first: int = 0
    """rows before that era"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The samples of one row, in order."""

    source: NDArray[np.int32]
    """i32[n] number of the source"""
    item: NDArray[np.int64]
    """i64[n] number of the sample in its source"""
    epoch: NDArray[np.int64]
    """i64[n] passes that the source had made before"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What one source has given up to some row."""

    samples: int
    tokens: int
    passes: float
    """how many times it has gone through all of its samples"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EraPlan:
    """The rows of one era, each sample of which is in exactly one."""

    source: NDArray[np.int32]
    """i32[n] in reading order"""
    item: NDArray[np.int64]
    """i64[n]"""
    epoch: NDArray[np.int64]
    """i64[n]"""
    tokens: NDArray[np.int64]
    """i64[n] of each sample"""
    ends: NDArray[np.int64]
    """i64[rows], where each row's samples end"""

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, number: int) -> Row:
        """One row."""
        part = slice(self.ends[number - 1] if number else 0, self.ends[number])
        return Row(source=self.source[part], item=self.item[part], epoch=self.epoch[part])

    def sums(self, sources: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples and tokens of each source, i64[rows + 1, sources], before each row and in all of them."""
        rows = np.repeat(np.arange(1, len(self) + 1), np.diff(self.ends, prepend=0))
        places, shape = rows * sources + self.source, (len(self) + 1, sources)
        counts = np.bincount(places, minlength=shape[0] * sources).reshape(shape)
        tokens = np.bincount(places, weights=self.tokens, minlength=shape[0] * sources).reshape(shape)
        return counts.cumsum(axis=0), tokens.astype(np.int64).cumsum(axis=0)


def plan_era(mixture: Mixture, era: int, first: int, *, capacity: int, pool: int) -> EraPlan:
    """Place every sample of an era.

    Args:
        mixture: what is drawn from; no sample is longer than `capacity`.
        era: its number.
        first: rows before it.
        capacity: S, tokens of a row.
        pool: samples that wait to be packed.
    """
    drawn = mixture.draw(era)
    tokens = np.empty(len(drawn.item), np.int64)
    for number, stream in enumerate(mixture.streams):
        own = drawn.source == number
        tokens[own] = stream.lengths[drawn.item[own]]
    rows = pack_pooled(tokens.tolist(), capacity, pool)
    # Long samples leave the pool a little sooner, and what is left makes the last rows: no stretch is to lack either.
    shuffled = generator(mixture.seed, ROWS, era).permutation(len(rows)).tolist()
    order, ends = _in_order([rows[row] for row in shuffled], tokens, capacity, first)
    return EraPlan(
        source=drawn.source[order], item=drawn.item[order], epoch=drawn.epoch[order], tokens=tokens[order], ends=ends
    )


def _in_order(
    rows: list[list[int]], tokens: NDArray[np.int64], capacity: int, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(samples row after row, where each row's end), the rows arranged."""
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    members = [np.asarray(row, np.int64) for row in rows]
    ends = np.cumsum([len(row) for row in rows])
    arranged = arrange(row_costs(tokens[np.concatenate(members)], ends, capacity), first).tolist()
    return np.concatenate([members[row] for row in arranged]), np.cumsum([len(rows[row]) for row in arranged])


class Plan:
    """The sequence of rows over all eras, open at any number from `position`'s era on.

    Args:
        mixture: what is drawn from.
        capacity: S, tokens of a row.
        pool: samples that wait to be packed.
        position: where to go on.
    """

    def __init__(self, mixture: Mixture, capacity: int, pool: int, position: Position) -> None:
        self.mixture, self.capacity, self.pool = mixture, capacity, pool
        self._eras: dict[int, EraPlan] = {}
        self._firsts = {position.era: position.first}
        self._last = position.era
        self._sums: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._before: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def position(self, packs: int) -> Position:
        """Where row `packs` is; the era it is in is not planned where the row before it is the end of another.

        A run asks for where it stands: what was given in earlier eras is forgotten.

        Raises:
            MixtureEndError: there are fewer rows.
        """
        era = self._era_of(packs, inside=False)
        self._sums = {number: sums for number, sums in self._sums.items() if number >= era}
        return Position(packs=packs, era=era, first=self._firsts[era])

    def _era_of(self, packs: int, *, inside: bool) -> int:
        """The era that row `packs` is in; where not `inside`, the first that begins there, which may have no rows."""
        assert packs >= min(self._firsts.values()), "rows before the position's era cannot be asked for"
        era = self._last
        while packs < self._firsts[era] or self._firsts.get(era - 1) == packs:
            era -= 1
        while (inside or packs > self._firsts[era]) and packs >= (end := self._end(era)):
            era += 1
            self._firsts[era], self._last = end, max(self._last, era)
        return era

    def _end(self, era: int) -> int:
        """Rows before the era after this one. Readers are far ahead, so that it is often known."""
        return self._firsts[era + 1] if era + 1 in self._firsts else self._firsts[era] + len(self.era(era))

    def row(self, number: int) -> Row:
        """One row, counted from the start of training.

        Raises:
            MixtureEndError: there are fewer rows.
        """
        era = self._era_of(number, inside=True)
        return self.era(era).row(number - self._firsts[era])

    def given(self, packs: int) -> list[Given]:
        """What each source has given in the first `packs` rows, bad samples among them."""
        place = self.position(packs)
        starts, before = self._begun(place.era)
        counts, tokens = self._within(place)
        sums = zip(self.mixture.streams, (starts + counts).tolist(), (before + tokens).tolist(), strict=True)
        return [Given(samples=given, tokens=used, passes=given / len(stream)) for stream, given, used in sums]

    def _begun(self, era: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples and tokens, each i64[sources], before an era; those of the last era asked for are kept."""
        if self._before is None or self._before[0] != era:
            starts = self.mixture.positions(era)
            tokens = [stream.tokens_before(start) for stream, start in zip(self.mixture.streams, starts, strict=True)]
            self._before = era, np.asarray(starts), np.asarray(tokens)
        return self._before[1:]

    def _within(self, place: Position) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples and tokens, each i64[sources], of the rows between an era's beginning and a position."""
        if place.packs == place.first:
            none = np.zeros(len(self.mixture.streams), np.int64)
            return none, none
        if place.era not in self._sums:
            self._sums[place.era] = self.era(place.era).sums(len(self.mixture.streams))
        counts, tokens = self._sums[place.era]
        return counts[place.packs - place.first], tokens[place.packs - place.first]

    def era(self, number: int) -> EraPlan:
        """The rows of one era, which must not be before the position's; the last two asked for are kept."""
        if number not in self._eras:
            while len(self._eras) >= KEPT_ERAS:
                del self._eras[min(self._eras)]
            first = self._firsts[number]
            self._eras[number] = plan_era(self.mixture, number, first, capacity=self.capacity, pool=self.pool)
            self._sums[number] = self._eras[number].sums(len(self.mixture.streams))
        return self._eras[number]
