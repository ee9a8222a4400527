"""Attention over packed rows with Transformer Engine's variable-length kernels. Runs on a GPU alone."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn

from flagscale_vla.mcore.attention import PackedAttention


class TEPackedAttention(PackedAttention):
    """`PackedAttention` whose kernel is Transformer Engine's; continuing a kept prefix stays with plain kernels."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        row_one_layers: frozenset[int] = frozenset(),
        **rest: Any,
    ) -> None:
        super().__init__(config, layer_number, attn_mask_type, row_one_layers)
        self.mask_type = AttnMaskType.padding_causal if self.causal else AttnMaskType.padding
        self.kernel: nn.Module = TEDotProductAttention(
            config=config, layer_number=layer_number, attn_mask_type=self.mask_type, **rest
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any) -> Tensor:
        """As `PackedAttention.forward`."""
        if self.cache is not None or self.context_size > 1:
            return super().forward(query, key, value, attention_mask, **rest)
        packed = packed_params(attention_mask[self.row], query.device)
        result = self.kernel(
            query.squeeze(1), key.squeeze(1), value.squeeze(1), None, self.mask_type, packed_seq_params=packed
        )
        return result.reshape(len(query), 1, -1)


def packed_params(bounds: Tensor, device: torch.device) -> PackedSeqParams:
    """Megatron-core's description of documents, from their bounds i32[N+1] on the CPU."""
    longest = int(bounds.diff().max())
    cu_seqlens = bounds.unique_consecutive().to(device, non_blocking=True)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
