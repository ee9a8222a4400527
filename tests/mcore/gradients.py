"""Whole gradients, put together from what every rank holds after a step: no checkpoint has a part in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from flagscale_vla.mcore.engine import Engine

BY_LAYER = {"non_homogeneous_layers": True}
"""Asks Megatron-core to name layers by their number in the whole model."""


@dataclass(frozen=True)
class Part:
    """A rank's rectangle of a named tensor."""

    name: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    values: Tensor


def gather_shares(model: DistributedDataParallel) -> None:
    """Fill each gradient buffer with every data-parallel rank's share: a rank reduces its own alone."""
    group = model.intra_dp_cp_group
    for buffer in model.buffers:
        for bucket in buffer.buckets:
            share = bucket.grad_data.view(group.size(), -1)[group.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, share, group=group)


@torch.no_grad()
def parts(model: DistributedDataParallel) -> Iterator[Part]:
    """This rank's gradients by the names and places of their weights, whose values they take for a moment."""
    gather_shares(model)
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    weights = [parameter.detach().clone() for parameter in trained]
    for parameter in trained:
        parameter.copy_(parameter.main_grad)
    state = model.module.sharded_state_dict(metadata=dict(BY_LAYER))
    apply_factories(state)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor):
            yield Part(shard.key, tuple(shard.global_shape), tuple(shard.global_offset), shard.data.clone())
    for parameter, weight in zip(trained, weights, strict=True):
        parameter.copy_(weight)


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """Every gradient of the whole model by name, on rank 0; nothing elsewhere.

    A rectangle that several ranks hold is averaged over them, so that one of them that is wrong is seen.
    """
    mine = [part for model in engine.models for part in parts(model)]
    gathered: list[list[Part]] | None = [[]] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, gathered)
    places: dict[tuple[str, tuple[int, ...]], list[Part]] = defaultdict(list)
    for part in (part for parts_of_rank in gathered or [] for part in parts_of_rank):
        places[part.name, part.offset].append(part)
    tensors: dict[str, Tensor] = {}
    for (name, offset), copies in places.items():
        whole = tensors.setdefault(name, torch.full(copies[0].whole, torch.nan))
        values = torch.stack([copy.values.float() for copy in copies])
        ranges = [slice(start, start + size) for start, size in zip(offset, values.shape[1:], strict=True)]
        whole[tuple(ranges)] = values.mean(0)
    return tensors
