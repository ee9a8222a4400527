"""One rank of a job of any size, in this process, on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from flagscale_vla.config.parallel import Device, Dtype, ParallelConfig, PlatformConfig
from flagscale_vla.mcore.cpu import install_cpu_stand_ins
from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.layers import plain_layers
from flagscale_vla.mcore.platform import DTYPES, Platform, count_gpus
from flagscale_vla.mcore.topology import Topology

META = torch.device("meta")
MOMENTS_BYTES = 8
"""AdamW's two moments of one trained value, float32."""


class EverythingIsMeta(TorchFunctionMode):
    """Puts every tensor on the meta device, whatever device is asked for.

    The optimizer compares the spelling of a parameter's type: `cpu.CudaMeansCpu`, below this one, makes it CUDA's.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.type and len(args) == 1 and not kwargs:
            return str(func(*args)).replace("meta.", "", 1)
        if kwargs.get("device") is not None:
            kwargs["device"] = META
        return func(*args, **kwargs)


def meta_platform(config: PlatformConfig) -> Platform:
    """What a run with these settings would compute on, with its device swapped for meta.

    Its layers are the plain ones, whose parameters have the names and shapes of Transformer Engine's.
    """
    install_cpu_stand_ins()
    on_gpu = config.device is Device.gpu or (config.device is Device.auto and count_gpus() > 0)
    dtype = DTYPES[Dtype.bfloat16 if on_gpu else Dtype.float32] if config.dtype is Dtype.auto else DTYPES[config.dtype]
    return Platform(device=META, backend=dist.Backend.FAKE, dtype=dtype, layers=plain_layers(), fp8=False)


@contextmanager
def rank_on_meta(rank: int, parallel: ParallelConfig, platform: Platform) -> Iterator[Topology]:
    """Be process `rank` of `parallel.world_size` in torch's fake process group; every tensor made inside is empty."""
    dist.init_process_group(dist.Backend.FAKE, store=FakeStore(), rank=rank, world_size=parallel.world_size)
    topology = Topology.here(parallel, platform)
    try:
        with META, EverythingIsMeta(), _others_answer_alike():
            yield topology
    finally:
        topology.stop()


@contextmanager
def _others_answer_alike() -> Iterator[None]:
    """Let objects that are gathered come back as this rank's own: the fake group moves tensors alone, and no values."""
    gather = dist.all_gather_object
    setattr(dist, "all_gather_object", _fill)  # noqa: B010
    try:
        yield
    finally:
        setattr(dist, "all_gather_object", gather)  # noqa: B010


def _fill(answers: list[Any], own: Any, group: Any = None) -> None:
    answers[:] = [own] * len(answers)


def layer_numbers(block: TransformerBlock) -> list[int]:
    """Which of the whole model's layers a block holds, from 0."""
    return [layer.layer_number - 1 for layer in block.layers]


def count_weights(chunk: nn.Module, tensor: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Of each weight its name and how many parameters it has: here, and on all `tensor` ranks of this piece together.

    What every tensor rank has a copy of counts once; a tied output layer, whose weight is the first stage's embedding,
    not at all.
    """
    for name, weight in chunk.named_parameters():
        marks = vars(weight)
        count = weight.numel() * (tensor if marks.get("tensor_model_parallel", False) else 1)
        is_copy = name.endswith("output_layer.weight") and marks.get("shared_embedding", False)
        yield name, (weight.numel(), 0 if is_copy else count)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """What a rank holds between steps. Activations, and what NCCL and kernels keep for themselves, come on top."""

    weights: int
    """in Megatron-core's buffers, their padding included"""
    gradients: int
    """likewise"""
    main: int
    """float32 copies of this rank's share of the weights that are not float32 themselves"""
    moments: int
    """AdamW's two, of this rank's share of the weights"""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.main + self.moments


def rank_bytes(engine: Engine) -> RankBytes:
    """Bytes that a rank's weights, gradients and optimizer state take, as Megatron-core laid them out."""
    buffers = [buffer for model in engine.models for buffer in model.buffers]
    frozen = [weight for chunk in engine.chunks for weight in chunk.parameters() if not weight.requires_grad]
    parts = engine.optimizer.chained_optimizers
    main = sum(_count(part.shard_fp32_from_float16_groups) for part in parts)
    trained = main + sum(_count(part.shard_fp32_groups) for part in parts)
    return RankBytes(
        weights=sum(tensor.nbytes for tensor in [*(buffer.param_data for buffer in buffers), *frozen]),
        gradients=sum(buffer.grad_data.nbytes for buffer in buffers),
        main=main * torch.float32.itemsize,
        moments=trained * MOMENTS_BYTES,
    )


def _count(groups: list[list[Tensor]]) -> int:
    return sum(tensor.numel() for group in groups for tensor in group)
