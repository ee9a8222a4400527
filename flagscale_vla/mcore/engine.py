"""One optimizer step over any layout, and its sharded state: Megatron-core's schedules, DDP and optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from flagscale_vla.config.optim import LossConfig
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.mcore.initial import draw_weights, mark_shards
from flagscale_vla.mcore.optimizer import build_optimizer, freeze_parts, set_rates
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.saver import Saver
from flagscale_vla.mcore.state import Pieces, load_main, load_moments, load_weights, never, pieces_of
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.records import LossSums, PackedBatch

logger = logging.getLogger(__name__)

Objective = Callable[[Any, PackedBatch], LossSums]
"""What the last stage's output and its batch come to, as sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one optimizer step saw, the same on every rank."""

    losses: LossSums
    """sums over every row of the step; not yet divided or weighted"""
    grad_norm: float
    """global norm before clipping"""


class Engine:
    """A model on every rank, wrapped for training."""

    def __init__(
        self,
        build_chunk: Callable[[int], MegatronModule],
        objective: Objective,
        run: TrainRun,
        topology: Topology,
        platform: Platform,
    ) -> None:
        self.topology, self.platform = topology, platform
        self.length, self.weights = run.data.pack_length, run.optim.loss
        self.objective = objective
        self.chunks = [_prepare(build_chunk(number), run, platform) for number in range(run.parallel.virtual)]
        """the model's pieces on this pipeline stage, unwrapped, in the order of their layers"""
        self.models = _wrap(self.chunks, run.parallel)
        self.optimizer: MegatronOptimizer = build_optimizer(self.models, run, platform)
        self.schedule = get_forward_backward_func()
        self.saver = Saver(topology.rank)
        self.num_updates = 0

    def train_step(self, batches: Sequence[PackedBatch], lr_share: float) -> StepResult:
        """Run this rank's micro-batches forward and backward, then step at `lr_share` of the peak rates."""
        losses = self.gradients(batches)
        set_rates(self.optimizer, lr_share)
        _, grad_norm, _ = self.optimizer.step()
        self.num_updates += 1
        return StepResult(losses=losses, grad_norm=float(grad_norm))

    def gradients(self, batches: Sequence[PackedBatch]) -> LossSums:
        """Gradients of the weighted losses, each divided by its count over all data-parallel ranks."""
        counts = self._global_counts(batches)
        for model in self.models:
            model.zero_grad_buffer()
            model.train()
        self.optimizer.zero_grad()
        sums: list[LossSums] = self.schedule(
            forward_step_func=partial(self._forward_step, counts=counts),
            data_iterator=[iter(batches) for _ in self.models],
            model=self.models,
            num_microbatches=len(batches),
            seq_length=self.length,
            micro_batch_size=1,
        )
        return self._global_sums(sums, counts)

    def _global_counts(self, batches: Sequence[PackedBatch]) -> tuple[int, int]:
        labels = sum(batch.num_labels for batch in batches)
        values = sum(batch.num_action_values for batch in batches)
        total_labels, total_values = self.topology.data_sum([labels, values])
        return total_labels, total_values

    def _forward_step(
        self, batches: Any, model: torch.nn.Module, counts: tuple[int, int]
    ) -> tuple[Any, Callable[[Any], tuple[Tensor, Tensor, LossSums]]]:
        batch: PackedBatch = next(batches).to(self.platform.device)
        return model(batch), partial(self._loss, batch=batch, counts=counts)

    def _loss(self, output: Any, batch: PackedBatch, counts: tuple[int, int]) -> tuple[Tensor, Tensor, LossSums]:
        sums = self.objective(output, batch)
        loss = weighted_loss(sums, self.weights, counts)
        kept = replace(sums, ce=sums.ce.detach(), flow=sums.flow.detach())
        return loss, torch.zeros([], dtype=torch.int, device=loss.device), kept

    def _global_sums(self, sums: Sequence[LossSums], counts: tuple[int, int]) -> LossSums:
        """Sums of the last stage's ranks, known to all; tensor ranks hold the same ones."""
        local = [float(sum(s.ce for s in sums)), float(sum(s.flow for s in sums))]
        ce, flow = self.topology.all_reduce_sum(local)
        share = 1.0 / self.topology.tp_size
        return LossSums(
            ce=torch.tensor(ce * share),
            flow=torch.tensor(flow * share),
            num_labels=counts[0],
            num_action_values=counts[1],
        )

    def gather_weights(self) -> None:
        """Bring every weight on this rank up to date; called by every rank before weights are read.

        With `parallel.overlap_param_gather` the step only changes each rank's share; the next forward pass gathers.
        """
        for model in self.models:
            if model.ddp_config.overlap_param_gather:
                model.start_param_sync(force_sync=True)

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into the empty `folder`; called by every rank."""
        self.saver.write(folder, self._pieces())

    def prepare_save(self) -> None:
        """Make room for the copies that `start_save` takes, while training goes on; all state must be there."""
        self.saver.prepare(self._pieces())

    def start_save(self, folder: Path) -> Future[None]:
        """Copy weights and optimizer state and write them while training goes on; called by every rank."""
        return self.saver.start(folder, self._pieces())

    def _pieces(self) -> Pieces:
        return pieces_of(self.chunks, self.optimizer, self.num_updates)

    def load(
        self,
        folder: Path,
        *,
        with_optimizer: bool,
        may_miss: Callable[[str], bool] = never,
        may_grow: Callable[[str], bool] = never,
    ) -> list[str]:
        """Read what was saved under any layout; called by every rank.

        Args:
            folder: a checkpoint's `weights/`.
            with_optimizer: also read its state; else it stays as at a run's beginning.
            may_miss: whether a tensor of this name may be left as it was drawn.
            may_grow: whether one of this name may have more rows than are stored, which are left so.

        Returns:
            The tensors of this rank that were left.

        Raises:
            DamagedError: naming a tensor that is not as it was written.
            ValueError: naming a tensor that is missing or has another shape, and must not.
        """
        stored = StoredTensors.open(folder)
        left = load_weights(self.chunks, stored, may_miss, may_grow)
        load_main(self.chunks, self.optimizer, stored, may_grow)
        self.num_updates = load_moments(self.chunks, self.optimizer, stored) if with_optimizer else 0
        return left

    def num_parameters(self) -> int:
        """Parameters on this rank."""
        return sum(parameter.numel() for chunk in self.chunks for parameter in chunk.parameters())


def weighted_loss(sums: LossSums, weights: LossConfig, counts: tuple[int, int]) -> Tensor:
    """The scalar to differentiate: each sum over its global count, weighted. An absent loss has weight zero."""
    labels, values = counts
    return sums.ce * (weights.text / max(labels, 1)) + sums.flow * (weights.flow / max(values, 1))


def _prepare(chunk: MegatronModule, run: TrainRun, platform: Platform) -> MegatronModule:
    """A piece of the model with its first weights, ready to be wrapped."""
    chunk = chunk.to(platform.device)
    mark_shards(chunk)
    draw_weights(chunk, run.seed)
    freeze_parts(chunk, run.optim)
    return chunk


def _wrap(chunks: Sequence[MegatronModule], parallel: ParallelConfig) -> list[DistributedDataParallel]:
    """Every piece in Megatron-core's DDP; the schedule reads what concerns them all from the first.

    Buckets are left on for later pieces, which Megatron-LM turns off: without them bfloat16 and float32 weights are
    gathered in one call, which gloo answers with wrong values.
    """
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = _finalize
    models = [
        DistributedDataParallel(
            config=chunk.config,
            ddp_config=DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=parallel.overlap_grad_reduce,
                overlap_param_gather=parallel.overlap_param_gather,
                use_distributed_optimizer=True,
            ),
            module=chunk,
        )
        for chunk in chunks
    ]
    if parallel.overlap_grad_reduce:
        syncs = [model.no_sync for model in models]
        chunks[0].config.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
    return models


def _finalize(model: list[torch.nn.Module], num_tokens: Tensor | None, **rest: Any) -> None:
    """Megatron-core's last reductions, without its division: losses were divided by global counts already."""
    assert dist.is_initialized()
    finalize_model_grads(model, None, **rest)
