"""Attention over packed rows without Transformer Engine: one call of scaled dot products per shape of document."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn

from flagscale_vla.mcore.cpu_attention import DocumentAttention
from flagscale_vla.mcore.documents import AttentionPlan, plan_attention, plan_continuation, plan_extension, zigzag_rows
from flagscale_vla.mcore.varlen import attend_pieces, has_kernel

CPU_PIECE = 128
"""Rows of a document that attend in one product on a CPU: longer ones would spend half of it under the causal mask."""


@dataclass(slots=True)
class PrefixCache:
    """Keys and values of a prefix, by layer, for continuing it several times.

    While `grows`, the rows of a forward pass are kept, behind those of the document that each continues; `extend` then
    tells of them. Else they are forgotten.
    """

    bounds: tuple[int, ...] = ()
    """borders of the documents that are kept, laid end to end; empty at the beginning"""
    grows: bool = True
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def extend(self, bounds: tuple[int, ...]) -> None:
        """Count in the rows, with these documents' borders, of the forward pass that was just made."""
        kept = self.bounds or (0,) * len(bounds)
        self.bounds = tuple(old + new for old, new in zip(kept, bounds, strict=True))


class PackedAttention(nn.Module):
    """Attention within documents, in place of Megatron-core's local attention, which refuses packed rows and CP.

    The mask that Megatron-core hands through a block is, here, the documents' bounds: i32[R, N+1] on the CPU. Row 0
    holds for every layer, or, where `row_one_layers` is given, row 1 holds for those layers (numbered from 0).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        row_one_layers: frozenset[int] = frozenset(),
        **_: Any,
    ) -> None:
        super().__init__()
        self.layer_number = layer_number
        self.causal = attn_mask_type is AttnMaskType.causal
        self.row = int(layer_number - 1 in row_one_layers)
        self.context_size = config.context_parallel_size
        self.cache: PrefixCache | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        """Attend query [S, 1, heads, D] to key and value [S, 1, kv_heads, D]; returns [S, 1, heads x D]."""
        bounds = tuple(attention_mask[self.row].tolist())
        key, value = self._whole_row(key), self._whole_row(value)
        plan, key, value = self._plan(bounds, key, value)
        return attend(plan, query.squeeze(1), key.squeeze(1), value.squeeze(1), self.causal).flatten(1).unsqueeze(1)

    def _whole_row(self, rows: Tensor) -> Tensor:
        """Rows of every context rank, in row order: [S, ...] from [S / size, ...]."""
        if self.context_size == 1:
            return rows
        group = parallel_state.get_context_parallel_group()
        whole = gather_from_sequence_parallel_region(rows, group=group)
        size = self.context_size
        order = torch.cat([torch.from_numpy(zigzag_rows(len(whole), size, rank)) for rank in range(size)])
        return whole.index_select(0, torch.argsort(order).to(whole.device))

    def _plan(self, bounds: tuple[int, ...], key: Tensor, value: Tensor) -> tuple[AttentionPlan, Tensor, Tensor]:
        cache = self.cache
        if cache is not None and cache.bounds:
            return self._continue(cache, bounds, key, value)
        if cache is not None:
            cache.layers[self.layer_number] = (key, value)
        rank = parallel_state.get_context_parallel_rank() if self.context_size > 1 else 0
        longest = CPU_PIECE if key.device.type == "cpu" else None
        return plan_attention(bounds, len(key), self.causal, self.context_size, rank, longest), key, value

    def _continue(
        self, cache: PrefixCache, bounds: tuple[int, ...], key: Tensor, value: Tensor
    ) -> tuple[AttentionPlan, Tensor, Tensor]:
        kept_key, kept_value = cache.layers[self.layer_number]
        key, value = torch.cat([kept_key, key]), torch.cat([kept_value, value])
        if not cache.grows:
            return plan_continuation(cache.bounds, bounds), key, value
        order, plan = plan_extension(cache.bounds, bounds)
        key, value = (rows.index_select(0, order.to(rows.device)) for rows in (key, value))
        cache.layers[self.layer_number] = (key, value)
        return plan, key, value


def attend(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attention of query [S, heads, D] to key, value [K, kv_heads, D] by `plan`; returns [S, heads, D]."""
    if query.device.type == "cpu":
        return DocumentAttention.apply(query, key, value, plan, causal)
    if has_kernel(query):
        return attend_pieces(plan, query, key, value, causal)
    return plan.join(
        [
            _fused_products(group.queries.take(query), group.keys.take(key), group.keys.take(value), causal)
            for group in plan.groups
        ]
    )


def _fused_products(query_BLHD: Tensor, key_BLGD: Tensor, value_BLGD: Tensor, causal: bool) -> Tensor:
    """Scaled dot-product attention by torch's fused kernels; a causal mask is aligned to the last key."""
    repeats = query_BLHD.shape[2] // key_BLGD.shape[2]
    query = query_BLHD.transpose(1, 2)
    key, value = (rows.transpose(1, 2).repeat_interleave(repeats, dim=1) for rows in (key_BLGD, value_BLGD))
    Lq, Lk = query.shape[-2], key.shape[-2]
    mask = torch.ones(Lq, Lk, dtype=torch.bool, device=query.device).tril(Lk - Lq) if causal and Lq != Lk else None
    whole = causal and mask is None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole).transpose(1, 2)


@contextmanager
def use_prefix_cache(model: nn.Module, cache: PrefixCache) -> Iterator[None]:
    """Let every causal attention layer of `model` fill, then continue, `cache`."""
    layers = [layer for layer in model.modules() if isinstance(layer, PackedAttention) and layer.causal]
    for layer in layers:
        layer.cache = cache
    try:
        yield
    finally:
        for layer in layers:
            layer.cache = None
