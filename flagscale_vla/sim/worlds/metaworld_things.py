"""What questions about Meta-World's tasks may name: the things on the table, and the expert's sub-tasks in words."""

from __future__ import annotations

import mujoco
import numpy as np

from flagscale_vla.sim.worlds.scene import bodies_under, shown_geoms
from flagscale_vla.sim.worlds.things import GRIPPER, Thing

Parts = dict[str, tuple[str, ...]]
"""A thing's name to what of the model it is: `body` alone, `tree` with what hangs on it, `material`, or `site`."""

SHOWN_GROUPS = (0, 1, 2)
FINGERS = ("rightEndEffector", "leftEndEffector")
"""The red dots at the fingertips."""
PUCK: Parts = {"puck": ("body obj",)}
DRAWER: Parts = {
    "drawer": ("tree drawer_link",),
    "drawer handle": ("material drawer_white",),
    "drawer case": ("body drawercase_link",),
    "green marker": ("site goal",),
}
WINDOW: Parts = {
    "window": ("tree window",),
    "window handle": ("material window_white",),
    "green marker": ("site goal",),
}

THINGS: dict[str, Parts] = {
    "button-press-topdown": {"red button": ("material btn_red",), "button box": ("body buttonbox",)},
    "drawer-close": DRAWER,
    "drawer-open": DRAWER,
    "window-open": WINDOW,
    "window-close": WINDOW,
    "door-open": {
        "door": ("tree door_link",),
        "door handle": ("material dl_metal",),
        "safe": ("body doorlockB",),
        "green marker": ("site goal",),
    },
    "reach": PUCK | {"red marker": ("site goal",)},
    "pick-place": PUCK | {"blue marker": ("site goal",)},
}
"""Of each task, besides the gripper."""

SUBTASKS: dict[str, dict[str, str]] = {
    "button-press-topdown": {"reach": "move over the red button", "press": "press the red button down"},
    "drawer-close": {
        "reach": "move in front of the drawer",
        "lower": "lower the gripper to the drawer's front",
        "push": "push the drawer shut",
    },
    "drawer-open": {
        "reach": "move over the drawer handle",
        "lower": "lower the gripper behind the drawer handle",
        "pull": "pull the drawer open",
    },
    "window-open": {
        "reach": "move over to the window handle",
        "lower": "lower the gripper beside the window handle",
        "push": "push the window open",
    },
    "window-close": {
        "reach": "move over to the window handle",
        "lower": "lower the gripper beside the window handle",
        "push": "push the window shut",
    },
    "door-open": {
        "reach": "move to the door handle",
        "lower": "lower the gripper to the door handle",
        "pull": "pull the door open",
    },
    "reach": {"reach": "move the gripper to the red marker"},
    "pick-place": {
        "reach": "move over the puck",
        "lower": "lower the gripper around the puck",
        "grasp": "close the gripper on the puck",
        "carry": "carry the puck to the blue marker",
    },
}
"""Per task, the phases of `metaworld_skills` in the expert's order, as sentences."""


def things_of(model: mujoco.MjModel, task: str) -> list[Thing]:
    """The things of a task's model, the gripper first."""
    found = [Thing(name=GRIPPER, geoms=gripper_geoms(model), sites=frozenset(model.site(name).id for name in FINGERS))]
    return found + [select(model, name, parts) for name, parts in THINGS[task].items()]


def others_of(task: str) -> list[str]:
    """Names of things that only other tasks have, and that nothing here is called nearly the same.

    Markers are left out: small ones without a name are in many scenes.
    """
    names = {name for things in THINGS.values() for name in things}
    kinds = {kind_of(name) for name in THINGS[task]} | {"marker"}
    return sorted(name for name in names if kind_of(name) not in kinds)


def kind_of(name: str) -> str:
    """`handle` of `door handle`."""
    return name.split()[-1]


def gripper_geoms(model: mujoco.MjModel) -> frozenset[int]:
    """Of the hand and its fingers."""
    return shown_geoms(model, bodies_under(model, model.body("right_hand").id), SHOWN_GROUPS)


def select(model: mujoco.MjModel, name: str, parts: tuple[str, ...]) -> Thing:
    """A thing from what `THINGS` says it is."""
    geoms: set[int] = set()
    sites: set[int] = set()
    for part in parts:
        kind, _, of = part.partition(" ")
        match kind:
            case "body":
                geoms |= shown_geoms(model, [model.body(of).id], SHOWN_GROUPS)
            case "tree":
                geoms |= shown_geoms(model, bodies_under(model, model.body(of).id), SHOWN_GROUPS)
            case "material":
                geoms |= {int(geom) for geom in np.flatnonzero(model.geom_matid == model.mat(of).id)}
            case "site":
                sites.add(model.site(of).id)
    return Thing(name=name, geoms=frozenset(geoms), sites=frozenset(sites))
