"""Degrees of parallelism made into process groups, and the numbers that everyone asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch._C._distributed_c10d import HashStore

from flagscale_vla.config.checks import check
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.mcore.platform import Platform

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for the slowest process before the run is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where this process stands among all processes."""

    rank: int
    world_size: int
    dp_rank: int
    dp_size: int
    tp_size: int
    cp_rank: int
    cp_size: int
    is_first_stage: bool
    is_last_stage: bool
    device: torch.device

    @classmethod
    def start(cls, parallel: ParallelConfig, platform: Platform, timeout: timedelta = TIMEOUT) -> Topology:
        """Join the process group that the launcher's environment names, or make one of a single process.

        Raises:
            ConfigError: where the number of processes is not the product of the degrees.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        rule = f"the launcher started {world_size} processes, the degrees multiply to {parallel.world_size}"
        fits = parallel.data * world_size // parallel.world_size
        check(world_size == parallel.world_size, "parallel.data", parallel.data, rule, max(fits, 1))
        _join(platform, timeout)
        return cls.here(parallel, platform)

    @classmethod
    def here(cls, parallel: ParallelConfig, platform: Platform) -> Topology:
        """Split the processes that this one has joined by the degrees."""
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual if parallel.virtual > 1 else None,
            context_parallel_size=parallel.context,
            create_gloo_process_groups=platform.backend != dist.Backend.FAKE,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(0)
        return cls._here(platform)

    @classmethod
    def _here(cls, platform: Platform) -> Topology:
        return cls(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
            tp_size=parallel_state.get_tensor_model_parallel_world_size(),
            cp_rank=parallel_state.get_context_parallel_rank(),
            cp_size=parallel_state.get_context_parallel_world_size(),
            is_first_stage=parallel_state.is_pipeline_first_stage(),
            is_last_stage=parallel_state.is_pipeline_last_stage(),
            device=platform.device,
        )

    @property
    def is_writer(self) -> bool:
        """Whether this process writes what only one should: global rank 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every process."""
        dist.barrier()

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sum of `values` over every process."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def add_up(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over every process, in place; every process gets the same bits."""
        dist.all_reduce(tensor)

    def data_sum(self, values: Sequence[int]) -> list[int]:
        """Sum of `values` over the data-parallel ranks, each of which reads different rows."""
        total = torch.tensor(values, dtype=torch.int64, device=self.device)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return [int(value) for value in total]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return self.all_reduce_sum([float(flag)])[0] > 0

    def stop(self) -> None:
        """Leave the process group."""
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _join(platform: Platform, timeout: timedelta) -> None:
    if "RANK" in os.environ:
        dist.init_process_group(platform.backend, timeout=timeout)
        return
    dist.init_process_group(platform.backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
