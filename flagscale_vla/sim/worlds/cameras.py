"""Fast off-screen frames from MuJoCo, each checked: a renderer that fails gives blank or old frames, not an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np
from numpy.typing import NDArray

from flagscale_vla.sim.worlds.backend import HELP
from flagscale_vla.sim.worlds.lens import Lens

SHADOW_MAP_PIXELS = 1024
COLLISION_GROUP = 0
STALE_METERS = 0.02
"""A hand that moved this far changes every camera's frame."""


class FrameError(RuntimeError):
    """A camera's frame cannot be trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A camera of the model, and how it is used."""

    camera: str
    turned: bool = False
    """rotate frames by half a turn, for a camera that is mounted upside down"""
    fov_degrees: float | None = None
    """height of the view; narrower than the model's own where what matters would be a few pixels"""


def speed_up(model: mujoco.MjModel) -> None:
    """Drop multisampling and shrink shadow maps: ten times faster on a CPU, and no loss at these sizes."""
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = SHADOW_MAP_PIXELS


def hide_transparent(scene: mujoco.MjvScene) -> None:
    """Take what no picture shows out of a segmentation, where it would cover what is behind it.

    robosuite gives sites a negative opacity to hide them; segmentation draws them all the same.
    """
    for geom in scene.geoms[: scene.ngeom]:
        if geom.rgba[3] <= 0:
            geom.segid = -1


class Cameras:
    """The views of one model through a renderer, opened at the first frame.

    MuJoCo serves old frames, without an error, once a renderer is dropped after a newer one was made. So there is one
    renderer in a process: whoever needs it next closes the one before.

    Args:
        model: the compiled model; `speed_up` is applied to it.
        views: by the name the robot gives them; none for a world without pictures, which opens no renderer.
        pixels: side of the square frames, above 0 where there are views.
        task: named in errors.
        collision_shapes: draw group 0, which robosuite uses for collision shapes.
    """

    _owner: ClassVar[Cameras | None] = None

    def __init__(
        self,
        model: mujoco.MjModel,
        views: Mapping[str, View],
        *,
        pixels: int,
        task: str,
        collision_shapes: bool = True,
    ) -> None:
        speed_up(model)
        for view in views.values():
            if view.fov_degrees is not None:
                model.camera(view.camera).fovy[:] = view.fov_degrees
        self._model, self._views, self._pixels, self._task = model, dict(views), pixels, task
        self._options = mujoco.MjvOption()
        self._options.geomgroup[COLLISION_GROUP] = int(collision_shapes)
        self._renderer: mujoco.Renderer | None = None
        self._last: dict[str, NDArray[np.uint8]] = {}
        self._last_hand = np.full(3, np.nan)

    def frames(self, data: mujoco.MjData, hand: NDArray[np.float64]) -> dict[str, NDArray[np.uint8]]:
        """One u8[pixels, pixels, 3] RGB frame per view.

        Args:
            data: the state to draw.
            hand: f64[3] position of the hand in metres, to tell a stale frame from a still one.

        Raises:
            FrameError: naming task and camera of a blank or stale frame.
        """
        moved = bool(np.linalg.norm(hand - self._last_hand) > STALE_METERS)
        frames = {name: self._draw(data, view) for name, view in self._views.items()}
        for name, frame in frames.items():
            self._check(name, frame, moved)
        self._last, self._last_hand = frames, np.array(hand, np.float64)
        return frames

    def segment(self, data: mujoco.MjData, name: str) -> NDArray[np.int32]:
        """i32[pixels, pixels, 2], the id and the type (`mujoco.mjtObj`) of what each pixel of a frame shows.

        Leaves the next frame as it would have been.
        """
        renderer = self._renderer or self._open()
        view = self._views[name]
        renderer.enable_segmentation_rendering()
        try:
            renderer.update_scene(data, camera=view.camera, scene_option=self._options)
            hide_transparent(renderer.scene)
            shown = renderer.render()
        finally:
            renderer.disable_segmentation_rendering()
        return np.ascontiguousarray(shown[::-1, ::-1] if view.turned else shown)

    def lens(self, data: mujoco.MjData, name: str) -> Lens:
        """How a view sees `data`."""
        view = self._views[name]
        camera = self._model.camera(view.camera).id
        return Lens(
            position=data.cam_xpos[camera].copy(),
            axes=data.cam_xmat[camera].reshape(3, 3).copy(),
            fov_degrees=float(self._model.cam_fovy[camera]),
            pixels=self._pixels,
            turned=view.turned,
        )

    def forget(self) -> None:
        """A new episode began: its first frames may equal the last ones."""
        self._last = {}

    def close(self) -> None:
        """Free the renderer, if it is open."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if Cameras._owner is self:
            Cameras._owner = None

    def _draw(self, data: mujoco.MjData, view: View) -> NDArray[np.uint8]:
        renderer = self._renderer or self._open()
        renderer.update_scene(data, camera=view.camera, scene_option=self._options)
        frame = renderer.render()
        return np.ascontiguousarray(frame[::-1, ::-1] if view.turned else frame)

    def _open(self) -> mujoco.Renderer:
        if Cameras._owner is not None:
            Cameras._owner.close()
        try:
            renderer = mujoco.Renderer(self._model, self._pixels, self._pixels)
        except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
            raise OSError(f"{HELP} ({type(error).__name__}: {error})") from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        self._renderer, Cameras._owner = renderer, self
        return renderer

    def _check(self, name: str, frame: NDArray[np.uint8], moved: bool) -> None:
        where = f"{self._task}: camera {name!r} ({self._views[name].camera})"
        if not frame.std() > 0:
            raise FrameError(f"{where} gave a blank frame, all pixels {frame.flat[0]}: the renderer has failed")
        last = self._last.get(name)
        if moved and last is not None and np.array_equal(frame, last):
            raise FrameError(f"{where} gave the same frame though the hand moved: the renderer has failed")
