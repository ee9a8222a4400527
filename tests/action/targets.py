"""An arm whose joints are told where to be, not how far to go, and a codec that is fitted on it in seconds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from flagscale_vla.action.fitter import Fitter
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.tokenizer import Floats
from flagscale_vla.config.tokenizer import KindConfig
from flagscale_vla.robots.embodiments import Embodiment
from tests.action.chunks import HORIZON, ROBOTS, statistics_of, training_chunks
from tests.action.codec import more_chunks, nothing, small

JOINTS = tuple(f"joint_{number}" for number in range(1, 7))
ARM = Embodiment(name="arm", state=("gripper", *JOINTS), action=(*JOINTS, "gripper"), cameras=("front",), fps=20)
STEPPER = replace(ROBOTS["panda"], name="stepper")
KNOWN = {"arm": ARM, "stepper": STEPPER}


def make_targets(count: int, seed: int) -> tuple[Floats, Floats]:
    """Targets f32[count, HORIZON, 7] that smoothly leave the states f32[count, 7] they come with, near or far."""
    generator = np.random.default_rng(seed)
    states = generator.uniform(-2.0, 2.0, (count, 7)).astype(np.float32)
    speeds = generator.normal(0.0, 0.3, (count, 1, 6))
    times = np.linspace(0.0, 1.0, HORIZON)[:, None]
    joints = states[:, None, 1:] + speeds * times**2
    gripper = np.broadcast_to(np.sign(states[:, :1, None]), (count, HORIZON, 1))
    return np.concatenate([joints, gripper], axis=2).astype(np.float32), states


@cache
def pinned_codec() -> OmniSat:
    """Fitted on the arm and on one that asks for steps."""
    targets, states = make_targets(2000, 0)
    joints = KindConfig(points=8, degree=3, latent=24, hidden=32, layers=8, codes=64)
    steps = training_chunks()["panda"]
    statistics = {"arm": statistics_of(targets), "stepper": statistics_of(steps)}
    fitter = Fitter(small(joints=joints, steps=5, pin_start=True), KNOWN, statistics, HORIZON, 0, nothing)
    chunks = {"arm": torch.from_numpy(targets), "stepper": torch.from_numpy(more_chunks(steps))}
    valid = {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in chunks.items()}
    starts = {"arm": torch.from_numpy(states)}
    fitter.begin(chunks, valid, starts)
    for step in range(5):
        fitter.step(chunks, valid, step, starts)
    return fitter.tokenizer()
