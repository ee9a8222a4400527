"""Norm and gated activation with few passes over memory, which is what they cost on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class RootMeanSquare(torch.autograd.Function):
    """`F.rms_norm` over the last axis of x [..., H] with a weight [H], which torch puts together of a dozen passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm of x, [..., H]."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rate = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return (x * rate).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and the weight."""
        x, weight, rate = ctx.saved_tensors
        by_x = gradients[0] * x
        share = (by_x @ weight)[..., None] * (rate.pow(3) / x.shape[-1])
        d_x = (gradients[0] * weight).mul_(rate).addcmul_(x, share, value=-1.0)
        return d_x, rate.flatten() @ by_x.flatten(0, -2), None


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up of [..., 2 x F], gate first: [..., F]."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Activations [..., F]."""
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Gradient of gate and up."""
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        d_gate, d_up = result.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate, out=d_up).mul_(gradients[0])
        torch.mul(gradients[0], up, out=d_gate)
        torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
        return result


class SwiGLU(MegatronModule):
    """Gated activation of a transformer's MLP (Shazeer 2020), in place of Megatron-core's."""

    def forward(self, both: Tensor) -> Tensor:
        """Activations [..., F] of gate and up [..., 2 x F]."""
        return GatedSilu.apply(both)
