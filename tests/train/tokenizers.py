"""Shards of smooth actions and settings of fits that take seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.records import Action, RawSample, State
from flagscale_vla.robots.embodiments import Embodiment
from tests.samples import PANDA, SAWYER, write_shards
from tests.settings import load

STORED_STEPS = 12
KINDS = ("position", "rotation", "gripper", "joints", "base")
SMALL = (
    "horizon=8",
    "threads=1",
    "fit.steps=12",
    "fit.batch=32",
    "fit.start_chunks=400",
    "checkpoint.every=4",
    "report.every=2",
    "report.overlays=1",
    "fast.vocab=300",
    "curves.fast_scales=[4]",
    "curves.beast_points=[2]",
    *(
        f"codec.{kind}.{key}={value}"
        for kind in KINDS
        for key, value in {"points": 6, "latent": 6, "hidden": 16, "layers": 2, "codes": 8}.items()
    ),
    "codec.warmup=2",
    "codec.revive_every=4",
)
"""Overrides of `tokenizer_omnisat`."""


def frame(seed: int, robot: Embodiment) -> RawSample:
    """A state and a chunk of smooth actions, its gripper open or shut, its last steps past the episode's end."""
    generator = np.random.default_rng([seed, len(robot.action)])
    speeds = generator.normal(size=(2, len(robot.action)))
    times = np.linspace(0.0, 1.0, STORED_STEPS)[:, None]
    values = (np.sin(3 * times * speeds[0]) + 0.5 * speeds[1]).astype(np.float32)
    values[:, -1] = np.where(times[:, 0] < generator.random(), -1.0, 1.0)
    valid = np.arange(STORED_STEPS) < generator.integers(2, 2 * STORED_STEPS)
    state = generator.normal(size=len(robot.state)).astype(np.float32)
    segments = (
        State(values=state, robot=robot.name),
        Action(values=values, valid=valid, robot=robot.name),
    )
    return RawSample(key=f"{robot.name}-{seed:05d}", segments=segments)


def frames(begin: int, count: int, robots: tuple[Embodiment, ...] = (SAWYER, PANDA)) -> list[RawSample]:
    """Frames of each robot."""
    return [frame(seed, robot) for robot in robots for seed in range(begin, begin + count)]


def write_action_shards(folder: Path) -> Path:
    """160 chunks of each of two robots, and 20 held out."""
    write_shards(folder, frames(0, 160))
    write_shards(folder, frames(1000, 20), "heldout")
    return folder


def small_fit(output: Path, shards: Path, *overrides: str, name: str = "tokenizer_omnisat") -> TokenizerRun:
    """The checked settings of a small fit."""
    run = load(name, *SMALL, f"output={output}", f"data.shards={shards}", *overrides)
    assert isinstance(run, TokenizerRun)
    return run
