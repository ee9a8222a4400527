"""What a simulator knows about a frame that a camera does not: which things are where, and which pixels show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from flagscale_vla.sim.worlds.cameras import Cameras
from flagscale_vla.sim.worlds.lens import Lens
from flagscale_vla.sim.worlds.things import Poses, Thing

Vector = NDArray[np.float64]

POSES = ("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat")
"""The fields of MjData that drawing a scene depends on."""
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


class Scene:
    """The things of a world, looked at through its own cameras.

    A moment is kept as `Poses` and looked at later, from data of its own, so that looking leaves no trace in the
    simulation.

    Args:
        model: the compiled model.
        cameras: that draw the robot's frames; the same renderer shows which pixel is what.
        things: that may be asked for.
        others: names of things that are certainly not there.
        grip: the site between the fingertips.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Cameras,
        *,
        things: Sequence[Thing],
        others: Sequence[str],
        grip: int,
    ) -> None:
        self.things, self.others = tuple(things), tuple(others)
        self._model, self._cameras, self._grip = model, cameras, grip
        self._moment: mujoco.MjData | None = None

    def take(self, data: mujoco.MjData) -> Poses:
        """Where everything is in `data` now."""
        return Poses(arrays=tuple(data.__getattribute__(name).copy() for name in POSES))

    def hand(self, poses: Poses) -> Vector:
        """f64[3] in metres, the point between the fingertips."""
        return poses.arrays[POSES.index("site_xpos")][self._grip]

    def masks(self, poses: Poses, camera: str) -> NDArray[np.bool_]:
        """bool[things, h, w], which pixels of a camera's frame show each thing."""
        ids, kinds = np.moveaxis(self._cameras.segment(self._data(poses), camera), -1, 0)
        geoms, sites = kinds == mujoco.mjtObj.mjOBJ_GEOM, kinds == mujoco.mjtObj.mjOBJ_SITE
        shown = [
            (geoms & np.isin(ids, list(thing.geoms))) | (sites & np.isin(ids, list(thing.sites)))
            for thing in self.things
        ]
        return np.stack(shown)

    def lens(self, poses: Poses, camera: str) -> Lens:
        """How a camera sees at that moment."""
        return self._cameras.lens(self._data(poses), camera)

    def corners(self, poses: Poses, thing: Thing) -> Vector:
        """f64[n, 3] in the world, the corners of the boxes around the thing's parts."""
        boxes = [centre + (CORNERS * half) @ axes.T for centre, half, axes in self._boxes(poses, thing)]
        return np.concatenate(boxes)

    def distance(self, poses: Poses, thing: Thing, point: Vector) -> float:
        """Metres from a point f64[3] to the nearest box around a part of the thing; 0 inside."""
        away = [
            np.linalg.norm(np.maximum(np.abs((point - centre) @ axes) - half, 0.0))
            for centre, half, axes in self._boxes(poses, thing)
        ]
        return float(min(away))

    def _boxes(self, poses: Poses, thing: Thing) -> Iterable[tuple[Vector, Vector, Vector]]:
        """(centre, half sides, axes) of each part."""
        geom_places, geom_axes, site_places, site_axes, _, _ = poses.arrays
        for geom in thing.geoms:
            axes = geom_axes[geom].reshape(3, 3)
            offset, half = np.split(self._model.geom_aabb[geom], 2)
            yield geom_places[geom] + axes @ offset, half, axes
        for site in thing.sites:
            yield site_places[site], np.full(3, self._model.site_size[site, 0]), site_axes[site].reshape(3, 3)

    def _data(self, poses: Poses) -> mujoco.MjData:
        """Data that stand as everything stood then; not those of the simulation."""
        if self._moment is None:
            self._moment = mujoco.MjData(self._model)
        for name, array in zip(POSES, poses.arrays, strict=True):
            self._moment.__getattribute__(name)[:] = array
        return self._moment


def shown_geoms(model: mujoco.MjModel, bodies: Iterable[int], groups: Sequence[int]) -> frozenset[int]:
    """The geoms of bodies that are drawn: of these groups, and not transparent."""
    wanted = np.isin(model.geom_bodyid, list(bodies)) & np.isin(model.geom_group, groups) & (model.geom_rgba[:, 3] > 0)
    return frozenset(int(geom) for geom in np.flatnonzero(wanted))


def bodies_under(model: mujoco.MjModel, root: int) -> list[int]:
    """A body and all that hang on it."""
    return [body for body in range(model.nbody) if is_part_of(model, body, root)]


def is_part_of(model: mujoco.MjModel, body: int, root: int) -> bool:
    """Whether a body is `root` or hangs on it."""
    while body not in (0, root):
        body = model.body_parentid[body]
    return bool(body == root)
