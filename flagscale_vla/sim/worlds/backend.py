"""Which off-screen renderer MuJoCo uses. Decided before `mujoco` is imported: it reads MUJOCO_GL only then."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa")
HELP = (
    "MuJoCo cannot draw here: neither EGL nor OSMesa works. On Debian or Ubuntu install them with "
    "`apt-get update && apt-get install -y libegl1 libgl1-mesa-dri libosmesa6`, then run again"
)
PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='.1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer.update_scene(data)
assert renderer.render().std() > 0
renderer.close()
"""


def choose_backend() -> str:
    """Set MUJOCO_GL to the first backend that draws here, unless it is set already; returns its value.

    Each candidate is tried in a process of its own, because a failed import of `mujoco` cannot be repeated.

    Raises:
        OSError: none works; the message names the packages to install.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return chosen
    for backend in BACKENDS:
        if draws(backend):
            os.environ["MUJOCO_GL"] = backend
            # PyOpenGL would otherwise pick a platform of its own.
            os.environ["PYOPENGL_PLATFORM"] = backend
            return backend
    raise OSError(HELP)


def draws(backend: str) -> bool:
    """Whether a fresh process renders a frame that is not blank."""
    environment = os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
    if done.returncode:
        logger.info("MUJOCO_GL=%s does not work here: %s", backend, done.stderr.strip().rsplit("\n", 1)[-1])
    return done.returncode == 0
