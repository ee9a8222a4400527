"""Attention over packed rows with Transformer Engine's variable-length kernels. Runs on a GPU alone."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from flagscale_vla.mcore.attention import PackedAttention
from flagscale_vla.mcore.packed_params import packed_params


class TEPackedAttention(PackedAttention):
    """`PackedAttention` whose kernel is Transformer Engine's where that can take what there is.

    It cannot take float32 in packed rows; and its context parallelism wants every document cut in two pieces for each
    rank, where our rows are cut as a whole. There, and where a kept prefix is continued, torch's kernels run.
    """

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
        self.kernel: TEDotProductAttention | None = None
        if self.context_size == 1 and config.params_dtype is not torch.float32:
            self.kernel = TEDotProductAttention(
                config=config, layer_number=layer_number, attn_mask_type=self.mask_type, **rest
            )

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any) -> Tensor:
        """As `PackedAttention.forward`."""
        if self.kernel is None or self.cache is not None:
            return super().forward(query, key, value, attention_mask, **rest)
        packed = packed_params(tuple(attention_mask[self.row].tolist()), query.device)
        result = self.kernel(
            query.squeeze(1), key.squeeze(1), value.squeeze(1), None, self.mask_type, packed_seq_params=packed
        )
        return result.reshape(len(query), 1, -1)
