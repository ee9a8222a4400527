"""A small OmniSAT that is fitted in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from flagscale_vla.action.fitter import Fitter
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.tokenizer import Floats
from flagscale_vla.action.units import Units
from flagscale_vla.config.tokenizer import KindConfig, OmniSatConfig
from tests.action.chunks import HORIZON, ROBOTS, units


def small(**changes: object) -> OmniSatConfig:
    """A codec that is fitted in a second."""
    smooth = KindConfig(points=8, degree=3, latent=8, hidden=16, layers=3, codes=16)
    steps = KindConfig(points=16, degree=0, latent=4, hidden=16, layers=1, codes=8)
    kinds = {"position": smooth, "rotation": smooth, "gripper": steps, "joints": smooth, "base": smooth}
    fields: dict[str, object] = {
        "ridge": 1e-6,
        "pin_start": False, "beam": 2, "endings": 4, "astray": 1.0,
        "turned": 0.5, "shared_ids": True, "steps": 60, "lr": 2e-3, "warmup": 5, "decay": 0.95, "commitment": 0.25,
        "layer_dropout": 0.25, "rotation_trick": False, "geodesic": 0.0,
        "drift": 0.0, "padding_weight": 0.05, "balance": 0.5,
        "kmeans_rounds": 4, "dead_share": 0.05, "revive_every": 5,
    }  # fmt: skip
    return OmniSatConfig(**(kinds | fields | changes))  # type: ignore[arg-type]


def nothing(_: Tensor) -> None:
    """Adds up over one rank."""


def make_fitter(config: OmniSatConfig, sum_ranks: Callable[[Tensor], None] = nothing) -> Fitter:
    return Fitter(config, ROBOTS, units().statistics, HORIZON, 0, sum_ranks)


def fit_omnisat(chunks: Mapping[str, Floats], known: Units) -> OmniSat:
    """Fitted on all chunks at once, a few steps long."""
    arm = KindConfig(points=8, degree=3, latent=24, hidden=32, layers=12, codes=64)
    joints = KindConfig(points=8, degree=3, latent=48, hidden=32, layers=24, codes=64)
    kinds = {"position": arm, "rotation": arm, "base": arm, "joints": joints}
    fitter = Fitter(small(**kinds, steps=5), known.embodiments, known.statistics, HORIZON, 0, nothing)
    tensors = {robot: torch.from_numpy(more_chunks(values)) for robot, values in chunks.items()}
    valid = {robot: torch.ones(values.shape[:2], dtype=torch.bool) for robot, values in tensors.items()}
    fitter.begin(tensors, valid)
    for step in range(5):
        fitter.step(tensors, valid, step)
    return fitter.tokenizer()


def more_chunks(values: Floats) -> Floats:
    """Ten times as many: the dims of made-up chunks are independent, so each may be drawn from another chunk."""
    rows = np.random.default_rng(0).integers(len(values), size=(10 * len(values), 1, values.shape[2]))
    return values[rows, np.arange(values.shape[1])[:, None], np.arange(values.shape[2])]
