"""Where a camera of a simulator sees a point of the world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """A pinhole camera with a square picture, as MuJoCo draws it: it looks along its own -z, its y points up."""

    position: Vector
    """f64[3] in metres"""
    axes: Vector
    """f64[3, 3]; the columns are the camera's x, y and z in the world"""
    fov_degrees: float
    """height of the view"""
    pixels: int
    """side of the picture"""
    turned: bool
    """whether the picture was rotated by half a turn after it was drawn"""

    def project(self, points: Vector) -> Vector:
        """f64[n, 2], (x to the right, y down) of points f64[n, 3] before the camera.

        A pixel's middle has whole coordinates: what is drawn in column 7 lies in [6.5, 7.5).
        """
        seen = (points - self.position) @ self.axes
        focal = self.pixels / 2 / np.tan(np.radians(self.fov_degrees) / 2)
        middle = (self.pixels - 1) / 2
        offsets = focal * seen[:, :2] / -seen[:, 2:] * np.array([1.0, -1.0])
        return middle + (-offsets if self.turned else offsets)

    def sees(self, places: Vector) -> NDArray[np.bool_]:
        """bool[n], which of the picture's coordinates f64[n, 2] lie inside it."""
        return np.all((places >= -0.5) & (places < self.pixels - 0.5), axis=1)

    @property
    def right(self) -> Vector:
        """f64[3], the direction in the world that points to the right in the picture."""
        return -self.axes[:, 0] if self.turned else self.axes[:, 0]

    @property
    def away(self) -> Vector:
        """f64[3], the level direction away from the camera; meaningless for one that looks straight down."""
        level = -self.axes[:, 2] * np.array([1.0, 1.0, 0.0])
        return level / np.linalg.norm(level)
