"""One closed-loop episode: a controller plans, the world steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.policy.client import PolicyClient
from flagscale_vla.sim.film import Film
from flagscale_vla.sim.seeds import Purpose, episode_seed
from flagscale_vla.sim.workers import close_world, open_world
from flagscale_vla.sim.worlds.world import CONTROL_HZ, World

logger = logging.getLogger(__name__)

Plan = Callable[[World, int], NDArray[np.float32]]
"""(world, seed) -> the next actions f32[n, A0], in [-1, 1] or to be clipped to it"""
Play = Callable[[World, int, int], tuple[bool, int]]
"""(world that was just reset, its seed, most steps) -> whether the task was done, and after how many steps"""


class Outcome(Enum):
    """How an episode ended. An error says nothing of the policy's skill, so it is never counted as a failure."""

    success = "success"
    failure = "failure"
    error = "error"


class Controller(Enum):
    """Who drives: what is judged, or what sets the scale."""

    policy = "policy"
    expert = "expert"
    zero = "zero"
    raw = "raw"
    """the expert's actions of before, as they were"""
    codec = "codec"
    """the same through an action tokenizer"""
    chunks = "chunks"
    """chunk by chunk what the expert would do from here, through an action tokenizer"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One episode to be rolled out."""

    task: str
    number: int
    controller: Controller
    film: Path | None
    """where its video goes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all episodes of an evaluation share."""

    seed: int
    max_steps: int
    execute_steps: int
    image_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How a trial ended."""

    trial: Trial
    outcome: Outcome
    steps: int
    seconds: float
    instruction: str
    message: str
    """of the error, else empty"""


def expert_plan(world: World, seed: int) -> NDArray[np.float32]:
    """One step of the world's own expert."""
    return world.expert_action()[None]


def zero_plan(world: World, seed: int) -> NDArray[np.float32]:
    """One step of doing nothing."""
    return np.zeros((1, len(world.embodiment.action)), np.float32)


def policy_plan(client: PolicyClient, execute_steps: int) -> Plan:
    """The first steps of each chunk the policy answers with."""

    def plan(world: World, seed: int) -> NDArray[np.float32]:
        return client.infer([world.observe()], seed=seed)[0].values[:execute_steps]

    return plan


def attempt(trial: Trial, rules: Rules, plan: Plan) -> Attempt:
    """Roll one episode out, filmed where its trial says so."""
    film = Film(CONTROL_HZ) if trial.film is not None else None

    def play(world: World, seed: int, max_steps: int) -> tuple[bool, int]:
        return roll_out(world, plan, seed=seed, max_steps=max_steps, film=film)

    found = play_trial(trial, rules, play)
    if film is not None and trial.film is not None:
        film.save(trial.film, found.outcome.value)
    return found


def play_trial(trial: Trial, rules: Rules, play: Play) -> Attempt:
    """Play one episode. Whatever goes wrong inside it is its outcome, and does not stop the others."""
    world = open_world(trial.task, rules.image_pixels)
    seed = episode_seed(Purpose.evaluate, rules.seed, trial.number)
    begin, message = time.perf_counter(), ""
    world.reset(seed)
    instruction, steps = world.instruction, 0
    try:
        done, steps = play(world, seed, rules.max_steps or world.max_steps)
        outcome = Outcome.success if done else Outcome.failure
    except Exception as error:  # the rollout's edge: one episode's error must not end the evaluation
        outcome, message = Outcome.error, f"{type(error).__name__}: {error}"
        logger.warning("%s, episode %d of %s: %s", trial.task, trial.number, trial.controller.value, message)
        close_world()
    return Attempt(
        trial=trial,
        outcome=outcome,
        steps=steps,
        seconds=time.perf_counter() - begin,
        instruction=instruction,
        message=message,
    )


def roll_out(world: World, plan: Plan, *, seed: int, max_steps: int, film: Film | None) -> tuple[bool, int]:
    """Step a world that was just reset until the task is done; returns whether it was, and after how many steps.

    Raises:
        ValueError: the plan is empty, or an action has another width or is not finite.
    """
    steps = 0
    while True:
        actions = plan(world, seed + steps)
        if len(actions) == 0:
            raise ValueError("the policy answered with a chunk of no steps")
        for action in actions:
            if film is not None:
                film.add(world.observe())
            steps += 1
            if world.step(np.clip(action, -1.0, 1.0)):
                return True, steps
            if steps == max_steps:
                return False, steps
