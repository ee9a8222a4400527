"""A rank's share of weights and optimizer state as named pieces: saved under one layout, loaded under any.

A data-parallel rank writes the run of each parameter whose optimizer state it keeps, so every value is written once and
nothing is gathered. Beside weight `NAME` stand `exp_avg/NAME`, `exp_avg_sq/NAME` and, where weights are bfloat16, the
float32 ones that they are rounded from, `main/NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.optim import AdamW

from flagscale_vla.mcore.pieces import Piece, Rectangle
from flagscale_vla.mcore.storage import StoredTensors

BY_LAYER = {"non_homogeneous_layers": True}
"""Asks Megatron-core to name layers by their number in the whole model, not to stack them."""
MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN = "main"
NUM_UPDATES = "optimizer/num_updates"
"""AdamW steps taken, i64[1]."""

Pieces = list[tuple[Piece, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A rectangle of a named tensor that this rank holds: values [start, start + numel) of its parameter."""

    name: str
    whole: tuple[int, ...]
    rectangle: Rectangle
    parameter: nn.Parameter
    start: int
    is_first_copy: bool
    """false where another tensor rank, or the stage with the embedding, holds the same"""

    @property
    def stop(self) -> int:
        """End of its values in the parameter."""
        return self.start + self.rectangle.numel

    def piece(self, start: int, stop: int, kind: str = "") -> Piece | None:
        """The part of the block in values [start, stop) of the parameter, or None."""
        low, high = max(start, self.start), min(stop, self.stop)
        if low >= high:
            return None
        name = f"{kind}/{self.name}" if kind else self.name
        return Piece(
            name=name, whole=self.whole, rectangle=self.rectangle, start=low - self.start, stop=high - self.start
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The run of a parameter that this data-parallel rank updates, with its optimizer state, all flat."""

    start: int
    main: Tensor
    """float32 values; the parameter's own where that is float32"""
    state: dict[str, Tensor]

    @property
    def stop(self) -> int:
        """End of the run in the parameter."""
        return self.start + len(self.main)


def blocks_of(chunks: Sequence[MegatronModule]) -> list[Block]:
    """Every rectangle of every tensor that this rank holds."""
    found: list[Block] = []
    for chunk in chunks:
        for entry in nested_values(chunk.sharded_state_dict(metadata=dict(BY_LAYER))):
            if isinstance(entry, ShardedTensor | ShardedTensorFactory):
                found += _blocks(entry)
    return found


def _blocks(entry: ShardedTensor | ShardedTensorFactory) -> Iterator[Block]:
    """The rectangles of one parameter; a gated layer's are two, gate over up."""
    shards = list(nested_values({"": entry.build()})) if isinstance(entry, ShardedTensorFactory) else [entry]
    start = 0
    for shard in shards:
        rectangle = Rectangle(offset=tuple(shard.global_offset), shape=tuple(shard.local_shape))
        yield Block(
            name=shard.key,
            whole=tuple(shard.global_shape),
            rectangle=rectangle,
            parameter=entry.data,
            start=start,
            is_first_copy=not any(shard.replica_id[:-1]),
        )
        start += rectangle.numel
    assert start == entry.data.numel(), f"{entry.key}: its rectangles are not all of it"


def shards_of(optimizer: MegatronOptimizer) -> dict[nn.Parameter, Shard]:
    """What this rank updates, by parameter; those it has no part of are left out."""
    found = {}
    for part in optimizer.chained_optimizers:
        for parameter, main in _updated(part):
            run = part._get_model_param_range_map(parameter)["param"]
            kept = part.optimizer.state[main]
            state = {name: kept[name] for name in MOMENTS if name in kept}
            found[parameter] = Shard(start=run.start, main=main, state=state)
    return found


def _updated(part: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its part that AdamW updates.

    Megatron-core's own way from one to the other counts places in a group, and is wrong where a group holds parameters
    of two precisions, as it does when the flow head and the backbone learn at one rate.
    """
    halves = (part.model_float16_groups, part.shard_fp32_from_float16_groups)
    singles = (part.model_fp32_groups, part.shard_fp32_groups)
    for groups in (halves, singles):
        for parameters, mains in zip(*groups, strict=True):
            yield from zip(parameters, mains, strict=True)


def pieces_of(chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer, num_updates: int) -> Pieces:
    """All that this rank writes: live tensors, not copies."""
    shards = shards_of(optimizer)
    pieces: Pieces = []
    for block in blocks_of(chunks):
        if block.is_first_copy:
            pieces += _weight(block, shards.get(block.parameter)) + _state(block, shards.get(block.parameter))
    if torch.distributed.get_rank() == 0:
        pieces.append((_whole(NUM_UPDATES, (1,)), torch.tensor([num_updates])))
    return pieces


def _whole(name: str, shape: tuple[int, ...]) -> Piece:
    return Piece(name=name, whole=shape, rectangle=Rectangle.whole(shape), start=0, stop=prod(shape))


def _weight(block: Block, shard: Shard | None) -> Pieces:
    """The run of the weight that this rank updates; a frozen weight is written by the first data-parallel rank."""
    if block.parameter.requires_grad:
        start, stop = (shard.start, shard.stop) if shard else (0, 0)
    else:
        is_first = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        start, stop = 0, block.parameter.numel() if is_first else 0
    piece = block.piece(start, stop)
    if piece is None:
        return []
    low = block.start + piece.start
    return [(piece, block.parameter.detach().reshape(-1)[low : low + piece.numel])]


def _state(block: Block, shard: Shard | None) -> Pieces:
    if shard is None:
        return []
    kept = dict(shard.state)
    if block.parameter.dtype is not torch.float32:
        kept[MAIN] = shard.main.detach()
    pieces: Pieces = []
    for kind, values in kept.items():
        piece = block.piece(shard.start, shard.stop, kind)
        if piece is not None:
            low = block.start + piece.start - shard.start
            pieces.append((piece, values.reshape(-1)[low : low + piece.numel]))
    return pieces


def never(_: str) -> bool:
    """No tensor may be missing."""
    return False


@torch.no_grad()
def load_weights(
    chunks: Sequence[MegatronModule],
    stored: StoredTensors,
    may_miss: Callable[[str], bool] = never,
    may_grow: Callable[[str], bool] = never,
) -> list[str]:
    """Read this rank's weights; returns the names of those that were left as they were drawn.

    Args:
        chunks: the stages that this rank holds.
        stored: tensors, saved under any layout.
        may_miss: whether a tensor of this name may be left as it was drawn.
        may_grow: whether a tensor of this name may have more rows than are stored: those are left as they were drawn.

    Raises:
        DamagedError: naming a tensor that is not as it was written.
        ValueError: naming a tensor that is missing or has another shape, and must not.
    """
    left = []
    for block in blocks_of(chunks):
        rectangle = _stored_part(block, stored, may_grow)
        if rectangle is not None:
            values = stored.read_rectangle(block.name, rectangle).reshape(-1)
            block.parameter.reshape(-1)[block.start : block.start + rectangle.numel].copy_(values)
        elif may_miss(block.name):
            left.append(block.name)
        else:
            raise ValueError(_why_not(block, stored))
    return left


def _stored_part(block: Block, stored: StoredTensors, may_grow: Callable[[str], bool]) -> Rectangle | None:
    """What is stored of a block: all of it, or, of a tensor that has grown, its first rows; None of another tensor."""
    if block.name not in stored:
        return None
    shape, whole = stored.shape(block.name), block.whole
    if shape == whole:
        return block.rectangle
    if not may_grow(block.name) or shape[1:] != whole[1:] or shape[0] > whole[0]:
        return None
    first, *rest = block.rectangle.shape
    rows = min(max(shape[0] - block.rectangle.offset[0], 0), first)
    return Rectangle(offset=block.rectangle.offset, shape=(rows, *rest))


def _why_not(block: Block, stored: StoredTensors) -> str:
    found = stored.shape(block.name) if block.name in stored else "not there"
    return (
        f"{stored.folder}: this checkpoint does not hold this model's tensors: {block.name} of shape {block.whole} "
        f"is needed, it is {found}"
    )


@torch.no_grad()
def load_main(
    chunks: Sequence[MegatronModule],
    optimizer: MegatronOptimizer,
    stored: StoredTensors,
    may_grow: Callable[[str], bool] = never,
) -> None:
    """Set the float32 main weights: as they were stored, or, where no such weight is, as the model's are now."""
    optimizer.reload_model_params()
    shards = shards_of(optimizer)
    for block in blocks_of(chunks):
        shard = shards.get(block.parameter)
        if shard is None or block.parameter.dtype is torch.float32:
            continue
        rectangle = _stored_part(block, stored, may_grow)
        if rectangle is not None:
            kind = MAIN if f"{MAIN}/{block.name}" in stored else ""
            _fill(shard.main, replace(block, rectangle=rectangle), shard, kind, stored)


def _fill(target: Tensor, block: Block, shard: Shard, kind: str, stored: StoredTensors) -> None:
    piece = block.piece(shard.start, shard.stop, kind)
    if piece is None:
        return
    low = block.start + piece.start - shard.start
    values = stored.read_run(piece.name, piece.rectangle, piece.start, piece.stop)
    target.reshape(-1)[low : low + piece.numel].copy_(values)


@torch.no_grad()
def load_moments(chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer, stored: StoredTensors) -> int:
    """Read this rank's share of AdamW's state; returns the number of updates it has seen.

    Raises:
        DamagedError: naming a tensor that is not as it was written.
        ValueError: naming a moment that is missing.
    """
    num_updates = int(stored.read(NUM_UPDATES)) if NUM_UPDATES in stored else 0
    if num_updates == 0:
        return 0
    _begin(optimizer, num_updates)
    shards = shards_of(optimizer)
    for block in blocks_of(chunks):
        shard = shards.get(block.parameter)
        if shard is None:
            continue
        for kind in MOMENTS:
            if f"{kind}/{block.name}" not in stored:
                raise ValueError(f"{stored.folder}: optimizer state {kind}/{block.name} is missing: was it frozen?")
            _fill(shard.state[kind], block, shard, kind, stored)
    return num_updates


def _begin(optimizer: MegatronOptimizer, num_updates: int) -> None:
    """Give every parameter AdamW's state, empty, and the count of updates where each optimizer looks for it."""
    for part in optimizer.chained_optimizers:
        inner: Any = part.optimizer
        if not isinstance(inner, AdamW):
            # Transformer Engine's keeps one count for each group.
            part._init_optimizer_states_with_dummy_values()
        for group in inner.param_groups:
            if not isinstance(inner, AdamW):
                group["step"] = num_updates
                continue
            for parameter in group["params"]:
                moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
                inner.state[parameter] = {"step": torch.tensor(float(num_updates)), **moments}
