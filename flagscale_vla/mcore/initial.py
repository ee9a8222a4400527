"""First weights, drawn by a parameter's name: the same model under every parallel layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

EMBEDDING_STD = 0.02
"""As Qwen2.5 draws its embedding; other matrices keep the variance of their input (LeCun et al. 1998, section 4.6)."""


def sharded_tensors(model: MegatronModule) -> Iterator[ShardedTensor]:
    """Every weight of this process, with its name and place in the whole model's."""
    state = model.sharded_state_dict()
    apply_factories(state)
    return (value for value in nested_values(state) if isinstance(value, ShardedTensor))


def mark_shards(model: MegatronModule) -> None:
    """Say of each weight that is split over tensor ranks that it is: else the gradient's norm leaves out all but one's.

    Megatron-core's own layers say so only of weights they initialise themselves.
    """
    kinds = ((ColumnParallelLinear, 0), (RowParallelLinear, 1), (VocabParallelEmbedding, 0))
    for module in model.modules():
        for kind, axis in kinds:
            # A tied output layer has no weight of its own.
            if isinstance(module, kind) and module.weight is not None:
                set_tensor_model_parallel_attributes(module.weight, True, axis, 1)


@torch.no_grad()
def draw_weights(model: MegatronModule, seed: int) -> None:
    """Draw each matrix from a normal distribution by its name, set biases to zero, and leave norms at one."""
    for shard in sharded_tensors(model):
        assert shard.data is not None
        if shard.key.endswith(".bias"):
            shard.data.zero_()
        elif shard.data.dim() > 1:
            shard.data.copy_(_draw(shard, seed))


def _draw(shard: ShardedTensor, seed: int) -> Tensor:
    """This process's part of the whole tensor, i.e. of all layers' axis (prepended), then of its own axes."""
    layer = shard.global_offset[: shard.prepend_axis_num]
    shape = shard.global_shape[shard.prepend_axis_num :]
    offset = shard.global_offset[shard.prepend_axis_num :]
    name = f"{seed}/{shard.key}/{layer}"
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(number))
    std = EMBEDDING_STD if "word_embeddings" in shard.key else 1.0 / math.sqrt(shape[-1])
    place = tuple(slice(start, start + size) for start, size in zip(offset, shard.local_shape, strict=True))
    return whole[place] * std
