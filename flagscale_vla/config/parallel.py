"""Settings of layout: how many processes there are and what each one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive


class Device(Enum):
    """What a run computes on; `auto` takes a GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Dtype(Enum):
    """Numbers that weights and activations are computed in; the optimizer's main weights are float32 with all of them.

    `auto` is bfloat16 on a GPU and float32 on a CPU.
    """

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Fp8(Enum):
    """Matrix products of the language model's layers in 8 bits, by Transformer Engine on a GPU; weights keep 16."""

    none = "none"
    hybrid = "hybrid"
    """E4M3 forward, E5M2 backward (Micikevicius et al. 2022), each tensor scaled by its largest value at that moment"""


class MatmulPrecision(Enum):
    """Precision inside float32 matrix products, as `torch.set_float32_matmul_precision` names it."""

    highest = "highest"
    medium = "medium"


@dataclass(slots=True, kw_only=True)
class PlatformConfig:
    """What a run computes on and how exactly."""

    device: Device
    dtype: Dtype
    fp8: Fp8
    matmul: MatmulPrecision
    """`medium` lets a CPU with bfloat16 units use them in float32 products: faster, about three digits"""
    threads: int
    """CPU threads of one process; 0 shares the machine's cores out evenly among its processes"""

    def __post_init__(self) -> None:
        check(self.threads >= 0, "platform.threads", self.threads, "must not be negative", 0)
        ok = self.fp8 is Fp8.none or (self.device is not Device.cpu and self.dtype is not Dtype.float32)
        rule = "needs a GPU and its 16-bit numbers: not platform.device=cpu, nor platform.dtype=float32"
        check(ok, "platform.fp8", self.fp8.value, rule, Fp8.none.value)


class Recompute(Enum):
    """What of a layer's forward pass is thrown away and computed again in the backward pass."""

    none = "none"
    selective = "selective"
    """the modules in `modules`"""
    full = "full"
    """whole layers: only their inputs are kept"""


class RecomputeModule(Enum):
    """A part of a layer that `selective` can recompute, as Megatron-core names it.

    Its `layernorm` is left out: Megatron-core 0.16 recomputes norms with Transformer Engine alone.
    """

    core_attn = "core_attn"
    mlp = "mlp"


class RecomputeMethod(Enum):
    """Which layers `full` recomputes, as Megatron-core names it."""

    uniform = "uniform"
    """all, in groups of `layers` whose first input alone is kept"""
    block = "block"
    """the first `layers` of each pipeline piece, one by one; the others keep everything"""


@dataclass(slots=True, kw_only=True)
class RecomputeConfig:
    """Activation recompute of one transformer: memory bought with time, gradients unchanged."""

    granularity: Recompute
    modules: list[RecomputeModule]
    """what `selective` recomputes"""
    method: RecomputeMethod
    layers: int
    """see `RecomputeMethod`; for `full`"""

    def check(self, key: str, chunk_layers: Sequence[int]) -> None:
        """Refuse what does not fit pieces of these numbers of layers; `key` is where these settings stand."""
        check_positive(f"{key}.layers", self.layers)
        selective = self.granularity is Recompute.selective
        check(bool(self.modules) or not selective, f"{key}.modules", "[]", "must name what to recompute", "[core_attn]")
        uniform = self.granularity is Recompute.full and self.method is RecomputeMethod.uniform
        ok = not uniform or all(count % self.layers == 0 for count in chunk_layers)
        rule = f"must divide the layers of every pipeline piece, {', '.join(map(str, sorted(set(chunk_layers))))}"
        check(ok, f"{key}.layers", self.layers, rule, 1)


@dataclass(slots=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; the product of the first five but `virtual` is the number of processes."""

    tensor: int
    pipeline: int
    virtual: int
    """pieces of the model on each pipeline stage; above 1 the schedule is interleaved (Narayanan et al. 2021)"""
    first_layers: int
    """language layers on the first pipeline stage, which also holds the vision tower; 0 splits them evenly"""
    context: int
    data: int
    sequence: bool
    """sequence parallelism: norms and residuals are split over the tensor ranks"""
    hosts: int
    """machines the processes are spread over, evenly"""
    overlap_grad_reduce: bool
    """reduce gradients over the data-parallel ranks while the backward pass still runs"""
    overlap_param_gather: bool
    """gather updated weights over the data-parallel ranks while the next forward pass already runs"""
    language_recompute: RecomputeConfig
    vision_recompute: RecomputeConfig

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "virtual", "context", "data", "hosts"):
            check_positive(f"parallel.{name}", self.__getattribute__(name))
        ok = self.world_size % self.hosts == 0
        rule = f"must divide the number of processes, {self.world_size}"
        check(ok, "parallel.hosts", self.hosts, rule, 1)
        ok = not (self.sequence and self.tensor == 1)
        check(ok, "parallel.sequence", self.sequence, "needs parallel.tensor above 1", False)
        alone = self.pipeline == 1
        check(self.virtual == 1 or not alone, "parallel.virtual", self.virtual, "needs parallel.pipeline above 1", 1)
        check(self.first_layers >= 0, "parallel.first_layers", self.first_layers, "must not be negative", 0)
        rule = "needs parallel.pipeline above 1"
        check(self.first_layers == 0 or not alone, "parallel.first_layers", self.first_layers, rule, 0)
        ok = self.overlap_grad_reduce or not self.overlap_param_gather
        rule = "needs parallel.overlap_grad_reduce"
        check(ok, "parallel.overlap_param_gather", self.overlap_param_gather, rule, False)

    @classmethod
    def alone(cls) -> ParallelConfig:
        """One process with the whole model, as inference and conversion use it."""
        keep = RecomputeConfig(
            granularity=Recompute.none,
            modules=[RecomputeModule.core_attn],
            method=RecomputeMethod.uniform,
            layers=1,
        )
        return cls(
            tensor=1,
            pipeline=1,
            virtual=1,
            first_layers=0,
            context=1,
            data=1,
            sequence=False,
            hosts=1,
            overlap_grad_reduce=False,
            overlap_param_gather=False,
            language_recompute=keep,
            vision_recompute=keep,
        )

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.tensor * self.pipeline * self.context * self.data

    def stage_layers(self, layers: int) -> list[int]:
        """Language layers of each pipeline stage, of `layers` in all."""
        if not self.first_layers:
            return [layers // self.pipeline] * self.pipeline
        rest = (layers - self.first_layers) // (self.pipeline - 1)
        return [self.first_layers, *[rest] * (self.pipeline - 1)]
