"""Transformer Engine's layers that Megatron-core has no wrapper for. Run on a GPU alone."""

from __future__ import annotations

import torch
import transformer_engine.pytorch as te
from torch import nn


def replicated_linear(inputs: int, outputs: int) -> nn.Module:
    """A linear layer with bias in float32, the same on every tensor rank.

    Transformer Engine multiplies float32 matrices in TF32 (about three digits), whatever `platform.matmul` says.
    """
    layer = te.Linear(inputs, outputs, params_dtype=torch.float32)
    for parameter in layer.parameters():
        # It marks every weight as split over the tensor ranks, this one too: each would add its copy to the norm.
        setattr(parameter, "tensor_model_parallel", False)  # noqa: B010
    return layer
