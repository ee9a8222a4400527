"""AdamW over Megatron-core's distributed optimizer, with one learning rate for each part of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import ParamGroupOverride
from torch import nn

from flagscale_vla.config.optim import OptimConfig, PartConfig
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.mcore.platform import Platform


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to: vision, merger, language or head.

    Raises:
        ValueError: for a name that belongs to none.
    """
    name = name.removeprefix("module.")
    for prefix, part in (("vision.merger.", "merger"), ("vision.", "vision"), ("language.", "language")):
        if name.startswith(prefix):
            return part
    if name.startswith(("flow_in.", "flow_out.")):
        return "head"
    raise ValueError(f"parameter {name} belongs to no part of the model: vision, merger, language or head")


def parts(optim: OptimConfig) -> dict[str, PartConfig]:
    """The settings of each part, by its name."""
    return {"vision": optim.vision, "merger": optim.merger, "language": optim.language, "head": optim.head}


def freeze_parts(chunk: nn.Module, optim: OptimConfig) -> None:
    """Stop the gradients of frozen parts; before the piece is wrapped, so that no buffer is made for them."""
    frozen = {name for name, part in parts(optim).items() if part.frozen}
    for name, parameter in chunk.named_parameters():
        parameter.requires_grad_(part_of(name) not in frozen)


def build_optimizer(models: Sequence[DistributedDataParallel], run: TrainRun, platform: Platform) -> MegatronOptimizer:
    """AdamW (Loshchilov and Hutter 2019) with float32 main weights, its state split over the data-parallel ranks."""
    optim = run.optim
    config = OptimizerConfig(
        lr=optim.head.lr,
        min_lr=0.0,
        weight_decay=optim.weight_decay,
        bf16=platform.dtype is torch.bfloat16,
        params_dtype=platform.dtype,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        use_distributed_optimizer=True,
        overlap_param_gather=run.parallel.overlap_param_gather,
        clip_grad=optim.clip,
    )
    optimizer = get_megatron_optimizer(
        config,
        list(models),
        config_overrides=_overrides(optim),
        use_gloo_process_groups=platform.backend != dist.Backend.FAKE,
    )
    if platform.device.type == "cpu":
        for group in optimizer.param_groups:
            # torch's own AdamW, here in one pass over each tensor instead of ten.
            group["fused"] = True
    return optimizer


def _overrides(optim: OptimConfig) -> dict[ParamKey, ParamGroupOverride]:
    no_decay = ParamPredicate(name="vectors", fn=lambda parameter: parameter.dim() == 1)
    overrides = {ParamKey(predicate=no_decay): ParamGroupOverride(wd_mult=0.0)}
    for name, part in parts(optim).items():
        key = ParamKey(with_name_predicate=ParamWithNamePredicate(name=name, fn=_belongs_to(name)))
        overrides[key] = ParamGroupOverride(max_lr=part.lr)
    return overrides


def _belongs_to(part: str):  # type: ignore[no-untyped-def]
    return lambda _parameter, name: part_of(name) == part


def set_rates(optimizer: MegatronOptimizer, share: float) -> None:
    """Set every part's learning rate to `share` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["max_lr"] * share
