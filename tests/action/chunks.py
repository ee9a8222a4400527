"""Made-up chunks of four robots, smooth and with gripper steps, and what scales them."""

from __future__ import annotations

from functools import cache

import numpy as np

from flagscale_vla.action.tokenizer import Floats
from flagscale_vla.action.units import Units
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import Gatherer, RobotStatistics, no_statistics

HORIZON = 16
ARM = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
ACTIONS = {
    "sawyer": ("dx", "dy", "dz", "gripper"),
    "panda": ARM,
    "twin": tuple(f"{side}_{name}" for side in ("right", "left") for name in ARM),
    "rover": ("j1", "j2", "j3", "j4", "j5", "j6", "gripper", "base_vx", "base_vy", "base_wz"),
}
ROBOTS = {
    name: Embodiment(name=name, state=("s",), action=action, cameras=("front",), fps=20)
    for name, action in ACTIONS.items()
}


def make_chunks(robot: str, count: int, seed: int) -> Floats:
    """f32[count, HORIZON, A0] in own units: waves of 0.02 to 2, and grippers that open or close at some step."""
    generator = np.random.default_rng([seed, len(robot)])
    action = ACTIONS[robot]
    sizes = np.geomspace(0.02, 2.0, len(action))
    speeds, starts = (
        generator.uniform(0, 0.5, (count, 1, len(action))),
        generator.uniform(0, 6.3, (count, 1, len(action))),
    )
    steps = np.arange(HORIZON)[:, None]
    chunks = sizes * np.sin(speeds * steps + starts) + 0.3 * sizes
    switched = steps[None] >= generator.integers(0, 2 * HORIZON, (count, 1, 1))
    sides = generator.choice([-1.0, 1.0], (count, 1, 1))
    for dim, name in enumerate(action):
        if name.endswith("gripper"):
            chunks[..., dim : dim + 1] = np.where(switched, sides, -sides)
    return chunks.astype(np.float32)


def statistics_of(chunks: Floats) -> RobotStatistics:
    """Of the chunks' steps as actions; states were never seen."""
    rows = chunks.reshape(-1, chunks.shape[-1])
    gatherer = Gatherer(rows.shape[1])
    gatherer.add(rows)
    return RobotStatistics(state=no_statistics(), action=gatherer.finish())


@cache
def training_chunks() -> dict[str, Floats]:
    """By robot, 200 each."""
    return {robot: make_chunks(robot, 200, 0) for robot in ACTIONS}


@cache
def units() -> Units:
    """Of all four robots."""
    return Units(ROBOTS, {robot: statistics_of(chunks) for robot, chunks in training_chunks().items()})


@cache
def constant_units() -> Units:
    """Of a panda whose `dz` was always 0.25 and whose `drx` hardly ever moved."""
    return Units(ROBOTS, {"panda": statistics_of(constant_chunks())})


@cache
def constant_chunks() -> Floats:
    """f32[200, HORIZON, 7] of that panda."""
    chunks = make_chunks("panda", 200, 1)
    chunks[..., 2] = 0.25
    chunks[..., 3] = 0.0
    chunks[7, 3, 3] = 0.5
    return chunks
