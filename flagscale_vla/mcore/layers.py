"""The layers that differ between platforms, and the one norm that is our own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from flagscale_vla.mcore.attention import PackedAttention
from flagscale_vla.mcore.cpu_layers import RootMeanSquare


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis (Zhang and Sennrich 2019), in float32.

    Megatron-core's own norm without Transformer Engine refuses sequence parallelism; this one marks its weight so
    that its gradient is summed over the tensor ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: Tensor) -> Tensor:
        """Norm of x [..., hidden], in the dtype of x."""
        weight = self.weight.float()
        if x.device.type == "cpu":
            return RootMeanSquare.apply(x.float(), weight, self.eps).to(x.dtype)
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSet:
    """What a transformer is built of. Norm and linear stay separate so that parameter names agree everywhere."""

    norm: Callable[..., nn.Module]
    column_linear: Callable[..., nn.Module]
    row_linear: Callable[..., nn.Module]
    core_attention: Callable[..., nn.Module]
    head_linear: Callable[[int, int], nn.Module]
    """float32, from so many inputs to so many outputs, the same on every tensor rank: of the flow head"""


def plain_layers() -> LayerSet:
    """Megatron-core's parallel linears with our norm and our packed attention: on a CPU, or without TE."""
    return LayerSet(
        norm=RMSNorm,
        column_linear=ColumnParallelLinear,
        row_linear=RowParallelLinear,
        core_attention=PackedAttention,
        head_linear=nn.Linear,
    )


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed."""
    return importlib.util.find_spec("transformer_engine") is not None


def transformer_engine_layers() -> LayerSet:
    """Transformer Engine's norm, linears and variable-length attention: on a GPU."""
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm, TERowParallelLinear

    from flagscale_vla.mcore.te_attention import TEPackedAttention
    from flagscale_vla.mcore.te_layers import replicated_linear

    return LayerSet(
        norm=TENorm,
        column_linear=TEColumnParallelLinear,
        row_linear=TERowParallelLinear,
        core_attention=TEPackedAttention,
        head_linear=replicated_linear,
    )
