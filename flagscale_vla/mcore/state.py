"""Weights and optimizer state, sharded: saved under one layout, loaded under any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule

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
        optimizer.load_state_dict(state["optimizer"])
