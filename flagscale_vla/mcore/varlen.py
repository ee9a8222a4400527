"""Attention over packed rows by torch's variable-length kernels: on a GPU, in half precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from flagscale_vla.mcore.documents import AttentionPlan, Places, Rows

WIDEST_HEAD = 256
"""The kernels (FlashAttention, Dao 2023) take heads up to this, in steps of 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A plan's pieces laid end to end: queries in row order, and behind one another the keys that each may see.

    A causal piece's last query sees its last key, and each query before it one key less.
    """

    query_bounds: Tensor
    """i32[N+1]"""
    key_bounds: Tensor
    """i32[N+1]"""
    longest_query: int
    longest_key: int
    key_rows: Tensor | None
    """i64[K]; `None` where the keys follow one another already, which needs no copy"""


@cache
def varlen_attention() -> Callable[..., Tensor] | None:
    """torch's function, or `None` where this torch is too old for it: 2.9 has none, and its first form no grouping."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    function: Callable[..., Tensor] = import_module("torch.nn.attention.varlen").varlen_attn
    return function if {"window_size", "enable_gqa"} <= inspect.signature(function).parameters.keys() else None


def has_kernel(query: Tensor) -> bool:
    """Whether the kernels take such queries [S, heads, D]: not float32, and nothing on a CPU."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= WIDEST_HEAD
    return query.device.type == "cuda" and half and fits and varlen_attention() is not None


def attend_pieces(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attention of query [S, heads, D] to key, value [K, kv_heads, D] by `plan`; returns [S, heads, D]."""
    pieces = lay_end_to_end(plan, query.device)
    if pieces.key_rows is not None:
        key, value = key.index_select(0, pieces.key_rows), value.index_select(0, pieces.key_rows)
    attention = varlen_attention()
    assert attention is not None
    return attention(
        query,
        key,
        value,
        pieces.query_bounds,
        pieces.key_bounds,
        pieces.longest_query,
        pieces.longest_key,
        # How torch spells a causal mask, and none.
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=True,
    )


@lru_cache(maxsize=256)
def lay_end_to_end(plan: AttentionPlan, device: torch.device) -> Pieces:
    """The pieces of a plan, whose bounds are put on `device` once for all layers."""
    pairs = [pair for group in plan.groups for pair in zip(_rows(group.queries), _rows(group.keys), strict=True)]
    pairs.sort(key=lambda pair: int(pair[0][0]))
    queries, keys = ([pair[side] for pair in pairs] for side in (0, 1))
    key_rows = np.concatenate(keys)
    follow = np.array_equal(key_rows, np.arange(len(key_rows)))
    return Pieces(
        query_bounds=_bounds(queries).to(device),
        key_bounds=_bounds(keys).to(device),
        longest_query=max(map(len, queries)),
        longest_key=max(map(len, keys)),
        key_rows=None if follow else torch.from_numpy(key_rows).to(device),
    )


def _rows(places: Places) -> Rows:
    """Which rows each piece is, i64[count, length]."""
    rows = places.rows
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy()
    return numbers.reshape(places.count, places.length)


def _bounds(pieces: list[Rows]) -> Tensor:
    return torch.tensor([0, *np.cumsum([len(piece) for piece in pieces])], dtype=torch.int32)
