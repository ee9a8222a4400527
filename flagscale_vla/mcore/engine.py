"""One optimizer step over any layout, and its sharded state: Megatron-core's schedules, DDP and optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.mcore.initial import draw_weights, mark_shards
from flagscale_vla.mcore.optimizer import build_optimizer, freeze_parts, set_rates
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.state import load_state, save_state
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
        build_stage: Callable[[], MegatronModule],
        objective: Objective,
        run: TrainRun,
        topology: Topology,
        platform: Platform,
    ) -> None:
        self.topology, self.platform = topology, platform
        self.length, self.weights = run.data.pack_length, run.optim.loss
        self.objective = objective
        stage = build_stage().to(platform.device)
        mark_shards(stage)
        draw_weights(stage, run.seed)
        freeze_parts(stage, run.optim)
        self.stage = stage
        self.model = _wrap(stage, platform)
        self.optimizer: MegatronOptimizer = build_optimizer(self.model, run.optim, platform)
        self.schedule = get_forward_backward_func()

    def train_step(self, batches: Sequence[PackedBatch], lr_share: float) -> StepResult:
        """Run this rank's micro-batches forward and backward, then step at `lr_share` of the peak rates."""
        losses = self.gradients(batches)
        set_rates(self.optimizer, lr_share)
        _, grad_norm, _ = self.optimizer.step()
        return StepResult(losses=losses, grad_norm=float(grad_norm))

    def gradients(self, batches: Sequence[PackedBatch]) -> LossSums:
        """Gradients of the weighted losses, each divided by its count over all data-parallel ranks."""
        counts = self._global_counts(batches)
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.model.train()
        sums: list[LossSums] = self.schedule(
            forward_step_func=partial(self._forward_step, counts=counts),
            data_iterator=iter(batches),
            model=[self.model],
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

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into the empty `folder`; called by every rank."""
        save_state(self.stage, self.optimizer, folder)

    def load(self, folder: Path, *, weights_only: bool) -> None:
        """Read what `save` wrote under any layout; called by every rank.

        Raises:
            ValueError: where the checkpoint's tensors are not this model's.
        """
        load_state(self.stage, self.optimizer, folder, weights_only)

    def num_parameters(self) -> int:
        """Parameters on this rank."""
        return sum(parameter.numel() for parameter in self.stage.parameters())


def weighted_loss(sums: LossSums, weights: LossConfig, counts: tuple[int, int]) -> Tensor:
    """The scalar to differentiate: each sum over its global count, weighted. An absent loss has weight zero."""
    labels, values = counts
    return sums.ce * (weights.text / max(labels, 1)) + sums.flow * (weights.flow / max(values, 1))


def _wrap(stage: MegatronModule, platform: Platform) -> DistributedDataParallel:
    config = stage.config
    config.finalize_model_grads_func = _finalize
    model = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=platform.overlap,
            use_distributed_optimizer=True,
        ),
        module=stage,
    )
    if platform.overlap:
        config.no_sync_func = model.no_sync
    return model


def _finalize(model: list[torch.nn.Module], num_tokens: Tensor | None, **rest: Any) -> None:
    """Megatron-core's last reductions, without its division: losses were divided by global counts already."""
    assert dist.is_initialized()
    finalize_model_grads(model, None, **rest)
