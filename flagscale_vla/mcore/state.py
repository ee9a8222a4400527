"""Weights and optimizer state, sharded: saved under one layout, loaded under any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule
from torch.optim import AdamW

METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Optimizer state is stored by parameter, not by bucket, so that another layout can read it."""


def _state(stage: MegatronModule, optimizer: MegatronOptimizer | None, loading: bool) -> dict[str, Any]:
    state: dict[str, Any] = {"model": stage.sharded_state_dict(metadata=dict(METADATA))}
    if optimizer is not None:
        weights = stage.sharded_state_dict(metadata=dict(METADATA))
        state["optimizer"] = optimizer.sharded_state_dict(weights, is_loading=loading, metadata=dict(METADATA))
    return state


def save_state(stage: MegatronModule, optimizer: MegatronOptimizer, folder: Path) -> None:
    """Write weights and optimizer state into the empty `folder`; called by every rank."""
    folder.mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(_state(stage, optimizer, loading=False), str(folder))


def load_state(
    stage: MegatronModule, optimizer: MegatronOptimizer | None, folder: Path, weights_only: bool = True
) -> None:
    """Read weights, and unless `weights_only` the optimizer's state, written under any layout.

    Raises:
        ValueError: naming the folder, where its tensors are not this model's.
    """
    if optimizer is not None and not weights_only:
        _begin(optimizer)
    wanted = _state(stage, None if weights_only else optimizer, loading=True)
    try:
        state = dist_checkpointing.load(wanted, str(folder))
    except (CheckpointingException, KeyError) as error:
        raise ValueError(f"{folder}: this checkpoint does not hold this model's tensors: {error}") from error
    stage.load_state_dict(state["model"])
    if optimizer is None:
        return
    if weights_only:
        optimizer.reload_model_params()
    else:
        _load_optimizer(optimizer, state["optimizer"])


def _adamws(optimizer: MegatronOptimizer) -> list[AdamW]:
    """The optimizers inside that are torch's. Transformer Engine's needs none of what is done for them below."""
    return [part.optimizer for part in optimizer.chained_optimizers if isinstance(part.optimizer, AdamW)]


def _begin(optimizer: MegatronOptimizer) -> None:
    """Give AdamW the empty state of a run's beginning: Megatron-core asks it for its step before it loads one."""
    for adamw in _adamws(optimizer):
        for group in adamw.param_groups:
            for parameter in group["params"]:
                if not adamw.state[parameter]:
                    moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    adamw.state[parameter] = {"step": torch.zeros(()), **moments}


def _load_optimizer(optimizer: MegatronOptimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state as it was saved.

    Megatron-core 0.16 looks for AdamW's step count among the sharded tensors, where it never stored it, and gives all
    parameters one and the same count, which each of them would raise. So the counts are put aside in between.
    """
    if not _adamws(optimizer):
        optimizer.load_state_dict(saved)
        return
    tensors = saved.pop("param_state")
    optimizer.load_state_dict(saved)
    for part in optimizer.chained_optimizers:
        states = list(part.optimizer.state.values())
        steps = [state.pop("step") for state in states]
        part.load_parameter_state_from_fully_reshardable(tensors)
        for state, step in zip(states, steps, strict=True):
            state["step"] = step.clone()
