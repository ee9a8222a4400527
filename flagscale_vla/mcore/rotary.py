"""Rotary positions, applied to queries and keys in packed rows (Su et al. 2021, section 3.2.2, in halves)."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Rotation(torch.autograd.Function):
    """Turn each pair (first half, second half) of a head by an angle.

    Written out because the usual form, two concatenations and three products, is a fifth of a step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rows [S, 1, heads, D] turned by angles whose cos and sin are [S, 1, 1, D/2]."""
        ctx.save_for_backward(cos, sin)
        return _turn(rows, cos, sin)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient turned back."""
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _turn(gradients[0], cos, -sin), None, None


def _turn(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = rows.chunk(2, dim=-1)
    turned = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    left, right = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return turned


class RotarySelfAttention(SelfAttention):
    """Megatron-core's self-attention with positions of our own making.

    Its own rotation restarts at every document of a packed row, which is wrong for positions in three axes.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, rotary_pos_emb: Any, **rest: Any) -> Any:
        """As `SelfAttention.forward`; `rotary_pos_emb` is angles f32[S, 1, 1, D/2] of every row."""
        self._turn = (rotary_pos_emb.cos(), rotary_pos_emb.sin())
        return super().forward(hidden_states, attention_mask, rotary_pos_emb=None, **rest)

    def get_query_key_value_tensors(self, *args: Any, **rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of these rows, the first two turned."""
        query, key, value = super().get_query_key_value_tensors(*args, **rest)
        cos, sin = (part.to(query.dtype) for part in self._turn)
        return Rotation.apply(query, cos, sin), Rotation.apply(key, cos, sin), value
