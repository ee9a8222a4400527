"""An expert's episode played again: as it was, through a codec, or chunk by chunk from wherever the codec has led."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.policy.client import Codec
from flagscale_vla.sim.rollout import Play
from flagscale_vla.sim.worlds.world import World

Actions = NDArray[np.float32]
"""f32[steps, A0]"""
Expert = Callable[[World, int], Actions]
"""(world that was just reset, most steps) -> what its expert does; see `expert_actions`"""


def play_raw(expert: Expert, linger: int) -> Play:
    """Let the expert do the task, then do the same actions again without looking, the last one `linger` times more."""

    def play(world: World, seed: int, max_steps: int) -> tuple[bool, int]:
        actions = held(expert(world, max_steps), linger)
        world.reset(seed)
        return play_actions(world, actions)

    return play


def play_codec(codec: Codec, expert: Expert, linger: int) -> Play:
    """`play_raw` with what a codec leaves of all these actions, each chunk from where the robot then is."""

    def play(world: World, seed: int, max_steps: int) -> tuple[bool, int]:
        actions = held(expert(world, max_steps), linger)
        world.reset(seed)
        chunks = through_codec(codec, world.robot, actions, lambda: world.observe().state)
        return play_actions(world, chain.from_iterable(chunks))

    return play


def play_chunks(codec: Codec) -> Play:
    """At the end of each chunk ask the expert for the next one from there, and do what a codec leaves of it.

    An expert answers for one step, so its chunk is found by letting it act. The world is then brought back by doing all
    that was done before again, from the same seed: no simulator here can be trusted to save and restore all it holds.
    """

    def play(world: World, seed: int, max_steps: int) -> tuple[bool, int]:
        done: list[Actions] = []
        while True:
            solved, steps = play_beside_expert(world, done)
            if solved or steps >= max_steps:
                return solved, steps
            start = world.observe().state
            ahead = fill_up(expert_actions(world, codec.horizon), codec.horizon)[0]
            done.append(codec.reconstruct(world.robot, ahead, start)[: max_steps - steps])
            world.reset(seed)

    return play


def expert_actions(world: World, max_steps: int) -> Actions:
    """What the expert does from here until the task is done, or for `max_steps`."""
    actions = []
    for _ in range(max_steps):
        actions.append(world.expert_action())
        if world.step(actions[-1]):
            break
    return np.stack(actions)


def held(actions: Actions, linger: int) -> Actions:
    """Actions with the last one repeated `linger` times."""
    return np.concatenate([actions, np.repeat(actions[-1:], linger, axis=0)])


def play_actions(world: World, actions: Iterable[Actions]) -> tuple[bool, int]:
    """Step through actions f32[A0] until the task is done; returns whether it was, and after how many steps."""
    step = 0
    for step, action in enumerate(actions, start=1):
        if world.step(np.clip(action, -1.0, 1.0)):
            return True, step
    return False, step


def play_beside_expert(world: World, chunks: Sequence[Actions]) -> tuple[bool, int]:
    """`play_actions`, with the expert asked at every step, as an expert with a program needs to be."""
    steps = 0
    for chunk in chunks:
        for action in chunk:
            world.expert_action()
            steps += 1
            if world.step(np.clip(action, -1.0, 1.0)):
                return True, steps
    return False, steps


def through_codec(codec: Codec, robot: str, actions: Actions, state: Callable[[], Actions]) -> Iterator[Actions]:
    """What a codec leaves of actions, chunk by chunk; what the last one was filled up with is cut off.

    `state` tells the robot's state f32[S0] when a chunk is asked for.
    """
    for number, chunk in enumerate(fill_up(actions, codec.horizon)):
        yield codec.reconstruct(robot, chunk, state())[: len(actions) - number * codec.horizon]


def fill_up(actions: Actions, horizon: int) -> Actions:
    """Chunks f32[N, H, A0] one behind the other, the last filled up by repeating the last action, as training's are."""
    places = np.arange(-(-len(actions) // horizon) * horizon)
    return actions[np.minimum(places, len(actions) - 1)].reshape(-1, horizon, actions.shape[1])
