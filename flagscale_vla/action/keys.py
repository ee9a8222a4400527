"""Random numbers that belong to a chunk, whichever rank holds it and wherever in a batch it stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SumRanks = Callable[[Tensor], None]
"""Adds a tensor over all ranks, in place."""

ODD = 0x1E3779B97F4A7C15
BITS = 24
"""Bits of a key that decide who is drawn; rows that agree in all of them are averaged."""


def content_keys(values: Tensor) -> Tensor:
    """A key i64[n] of each row of f32[n, ...], made of its bits alone."""
    bits = values.contiguous().view(torch.int32).flatten(1).to(torch.int64)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator)
    return ((bits + ODD) * (factors | 1)).sum(dim=1)


def mix(keys: Tensor, *salts: int) -> Tensor:
    """Other keys i64[n], one for each; as the finisher of splitmix64 (Steele, Lea and Flood, 2014)."""
    for salt in salts:
        keys = (keys + (salt + 1) * ODD % 2**63) * -0x40A7B892E31B1A47
        keys = (keys ^ (keys >> 30 & 2**34 - 1)) * -0x6B2FB644ECCEEE15
        keys = keys ^ (keys >> 31 & 2**33 - 1)
    return keys


def uniform(keys: Tensor) -> Tensor:
    """Numbers f64[n] in [0, 1) of mixed keys."""
    return (keys >> 11 & 2**53 - 1).to(torch.float64) / 2**53


def draw_rows(rows: Tensor, keys: Tensor, slots: int, sum_ranks: SumRanks) -> tuple[Tensor, Tensor]:
    """One row for each slot out of all ranks' rows, the same whoever holds which.

    A row's key says which slot it may fill; of those the one with the smallest key does, found bit by bit.

    Args:
        rows: f32[n, d].
        keys: i64[n], mixed.
        slots: at least 1.
        sum_ranks: adds up over ranks.

    Returns:
        f32[slots, d] and bool[slots]: false where no row may fill the slot, and the row is zero.
    """
    slot, key = (keys >> 32 & 2**31 - 1) % slots, keys & 2**BITS - 1
    alive = torch.ones(len(rows), dtype=torch.bool)
    for bit in reversed(range(BITS)):
        is_zero = (key >> bit & 1) == 0
        zeros = torch.bincount(slot[alive & is_zero], minlength=slots).to(rows.dtype)
        sum_ranks(zeros)
        alive &= is_zero == (zeros > 0)[slot]
    drawn = torch.zeros(slots, rows.shape[1] + 1, dtype=rows.dtype)
    drawn.index_add_(0, slot[alive], torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)[alive])
    sum_ranks(drawn)
    found = drawn[:, -1] > 0
    return drawn[:, :-1] / drawn[:, -1:].clamp(min=1), found
