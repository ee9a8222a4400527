"""What is asked for in Meta-World's tasks, and which part of the task the expert is at.

The phases follow the rules of Meta-World's scripted policies (MIT), which steer by the same distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
PhaseRule = Callable[[Vector, float, Vector], str]
"""(hand f64[3], gripper opening in [0, 1], object f64[3]) -> phase"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """One task: sentences that ask for it, and the rule that names the expert's sub-task."""

    phrasings: tuple[str, ...]
    phase: PhaseRule


def over_then(verb: str, *, offset: tuple[float, float, float], radius: float, height: float) -> PhaseRule:
    """Reach a place above the object, lower onto it, then do `verb`; distances in metres."""

    def phase(hand: Vector, gripper: float, target: Vector) -> str:
        away = hand - target - np.array(offset)
        if np.linalg.norm(away[:2]) > radius:
            return "reach"
        return "lower" if abs(away[2]) > height else verb

    return phase


def close_drawer(hand: Vector, gripper: float, target: Vector) -> str:
    """Rise over the drawer to its front, lower, push."""
    if hand[1] > target[1]:
        return "reach"
    return "lower" if abs(hand[2] - target[2] + 0.02) > 0.04 else "push"


def pick_and_place(hand: Vector, gripper: float, target: Vector) -> str:
    """Reach over the puck, lower, grasp, carry."""
    away = hand - target - np.array([-0.005, 0.0, 0.0])
    if np.linalg.norm(away[:2]) > 0.02:
        return "reach"
    if abs(away[2]) > 0.05 and target[2] < 0.04:
        return "lower"
    return "grasp" if gripper > 0.73 else "carry"


def only_reach(hand: Vector, gripper: float, target: Vector) -> str:
    """The whole task is one motion."""
    return "reach"


SKILLS: dict[str, Skill] = {
    "button-press-topdown": Skill(
        phrasings=(
            "press the button from above",
            "push the red button down",
            "press down on the button",
            "move over the button and press it",
            "hit the red button from the top",
        ),
        phase=over_then("press", offset=(0.0, 0.0, 0.0), radius=0.04, height=np.inf),
    ),
    "drawer-close": Skill(
        phrasings=(
            "close the drawer",
            "push the drawer shut",
            "shut the green drawer",
            "push the drawer in until it is closed",
            "slide the drawer closed",
        ),
        phase=close_drawer,
    ),
    "drawer-open": Skill(
        phrasings=(
            "open the drawer",
            "pull the drawer out",
            "pull the green drawer open",
            "take the drawer by its handle and open it",
            "slide the drawer open",
        ),
        phase=over_then("pull", offset=(0.0, 0.0, -0.02), radius=0.06, height=0.04),
    ),
    "window-open": Skill(
        phrasings=(
            "open the window",
            "slide the window open",
            "push the window's handle to open it",
            "push the window open",
            "move the window to the open side",
        ),
        phase=over_then("push", offset=(-0.03, -0.03, -0.08), radius=0.04, height=0.02),
    ),
    "window-close": Skill(
        phrasings=(
            "close the window",
            "slide the window shut",
            "push the window's handle to close it",
            "shut the window",
            "move the window to the closed side",
        ),
        phase=over_then("push", offset=(0.03, -0.03, -0.08), radius=0.04, height=0.02),
    ),
    "door-open": Skill(
        phrasings=(
            "open the door",
            "pull the door open",
            "take the handle and open the door",
            "swing the door open",
            "open the door of the box by its handle",
        ),
        phase=over_then("pull", offset=(-0.05, 0.0, 0.0), radius=0.12, height=0.04),
    ),
    "reach": Skill(
        phrasings=(
            "reach the red goal",
            "move the hand to the red point",
            "touch the red marker",
            "bring the gripper to the goal",
        ),
        phase=only_reach,
    ),
    "pick-place": Skill(
        phrasings=(
            "pick up the puck and bring it to the goal",
            "grasp the puck and place it at the blue point",
            "take the red puck to the blue marker",
            "lift the puck and carry it to the goal",
        ),
        phase=pick_and_place,
    ),
}
