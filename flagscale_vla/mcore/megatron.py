"""Every name of Megatron-core that the model room builds with: the written list of what an upgrade can break there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from flagscale_vla.mcore.layers import LayerSet

__all__ = [
    "LanguageModule",
    "MegatronModule",
    "ModelType",
    "TransformerConfig",
    "column_linear",
    "gather_context_rows",
    "gather_rows",
    "output_linear",
    "row_linear",
    "scatter_rows",
    "token_losses",
    "word_embedding",
]


def _leave(weight: Tensor) -> None:
    """Leave a weight as it was allocated: `mcore.initial` draws all weights by name."""


def column_linear(layers: LayerSet, config: TransformerConfig, inputs: int, outputs: int) -> nn.Module:
    """A linear layer with bias whose outputs are split over the tensor ranks."""
    return _linear(layers.column_linear, config, inputs, outputs, gather_output=False)


def row_linear(layers: LayerSet, config: TransformerConfig, inputs: int, outputs: int) -> nn.Module:
    """A linear layer with bias whose inputs are split over the tensor ranks."""
    return _linear(layers.row_linear, config, inputs, outputs, input_is_parallel=True)


def _linear(
    kind: Callable[..., nn.Module], config: TransformerConfig, inputs: int, outputs: int, **rest: bool
) -> nn.Module:
    return kind(
        inputs, outputs, config=config, init_method=_leave, bias=True, skip_bias_add=False, is_expert=False, **rest
    )


def word_embedding(config: TransformerConfig, vocab: int) -> LanguageModelEmbedding:
    """An embedding split over the vocabulary; its rows come out whole on every tensor rank."""
    return LanguageModelEmbedding(
        config=config,
        vocab_size=vocab,
        max_sequence_length=0,
        position_embedding_type="none",
        scatter_to_sequence_parallel=False,
    )


def output_linear(config: TransformerConfig, vocab: int, tied_inside: bool) -> ColumnParallelLinear:
    """Hidden states to logits, split over the vocabulary. `tied_inside`: the weight is this stage's embedding."""
    layer = ColumnParallelLinear(
        config.hidden_size,
        vocab,
        config=config,
        init_method=_leave,
        bias=False,
        skip_bias_add=False,
        gather_output=False,
        skip_weight_param_allocation=tied_inside,
    )
    # Rows are chosen from the whole row before this layer, so there is nothing left to gather.
    layer.sequence_parallel = False
    layer.allreduce_dgrad = config.tensor_model_parallel_size > 1
    return layer


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy f32[L] of logits [L, vocab / tensor ranks] against labels i64[L]."""
    return vocab_parallel_cross_entropy(logits.float().unsqueeze(1), labels.unsqueeze(1)).squeeze(1)


def scatter_rows(hidden: Tensor, config: TransformerConfig) -> Tensor:
    """This tensor rank's rows [S / tensor, ...] under sequence parallelism, else all."""
    return scatter_to_sequence_parallel_region(hidden) if config.sequence_parallel else hidden


def gather_rows(hidden: Tensor, config: TransformerConfig) -> Tensor:
    """All rows [S, ...] from each tensor rank's under sequence parallelism. What follows is the same on every rank."""
    if not config.sequence_parallel:
        return hidden
    return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)


def gather_context_rows(rows: Tensor) -> Tensor:
    """Rows [R, ...] of every context rank, one rank's after the other's; their gradients are summed over the ranks."""
    return gather_from_sequence_parallel_region(rows, group=parallel_state.get_context_parallel_group())


def unwrap(model: Any) -> Any:
    """The module inside Megatron-core's wrappers."""
    while isinstance(model, nn.Module) and "module" in model._modules:
        model = model.module
    return model


def as_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module's parameters in `dtype`."""
    return module.to(dtype)
