"""Settings of layout: how many processes there are and what each one does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive


class Device(Enum):
    """What a run computes on; `auto` takes a GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class MatmulPrecision(Enum):
    """Precision inside float32 matrix products, as `torch.set_float32_matmul_precision` names it."""

    highest = "highest"
    medium = "medium"


@dataclass(slots=True, kw_only=True)
class PlatformConfig:
    """What a run computes on and how exactly."""

    device: Device
    matmul: MatmulPrecision
    """`medium` lets a CPU with bfloat16 units use them in float32 products: faster, about three digits"""
    threads: int
    """CPU threads of one process; 0 shares the machine's cores out evenly among its processes"""

    def __post_init__(self) -> None:
        check(self.threads >= 0, "platform.threads", self.threads, "must not be negative", 0)


@dataclass(slots=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; their product is the number of processes."""

    tensor: int
    pipeline: int
    context: int
    data: int
    sequence: bool
    """sequence parallelism: norms and residuals are split over the tensor ranks"""
    hosts: int
    """machines the processes are spread over, evenly"""

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "context", "data", "hosts"):
            check_positive(f"parallel.{name}", self.__getattribute__(name))
        ok = self.world_size % self.hosts == 0
        rule = f"must divide the number of processes, {self.world_size}"
        check(ok, "parallel.hosts", self.hosts, rule, 1)
        ok = not (self.sequence and self.tensor == 1)
        check(ok, "parallel.sequence", self.sequence, "needs parallel.tensor above 1", False)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.tensor * self.pipeline * self.context * self.data
