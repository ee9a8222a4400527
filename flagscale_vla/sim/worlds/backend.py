"""Which off-screen renderer MuJoCo uses. Decided before `mujoco` is imported: it reads MUJOCO_GL only then."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa")
NONE = "disable"
"""What MUJOCO_GL says where MuJoCo is to do without OpenGL."""
TRIED = "FLAGSCALE_VLA_RENDERER"
"""Environment variable that tells processes started from here which backend was seen to work."""
HELP = (
    "MuJoCo cannot draw here: no off-screen OpenGL works. On Debian or Ubuntu install them with "
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
    """Set MUJOCO_GL to the first backend that draws here, or see that the one it is set to does; returns its name.

    Each candidate is tried in a process of its own, because a failed import of `mujoco` cannot be repeated. Processes
    started later inherit the answer.

    Raises:
        OSError: none works; the message names the packages to install.
    """
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen and os.environ.get(TRIED) == chosen:
        return chosen
    for backend in (chosen,) if chosen else BACKENDS:
        if draws(backend):
            os.environ["MUJOCO_GL"] = os.environ[TRIED] = backend
            return backend
    raise OSError(HELP + (f". Or unset MUJOCO_GL={chosen}, so that one that works is looked for" if chosen else ""))


def choose_any_backend() -> None:
    """`choose_backend` for worlds that never draw: where no backend works, MuJoCo is told to do without."""
    if os.environ.get("MUJOCO_GL") == NONE:
        return
    try:
        choose_backend()
    except OSError:
        os.environ["MUJOCO_GL"] = NONE


def draws(backend: str) -> bool:
    """Whether a fresh process renders a frame that is not blank."""
    environment = os.environ | {"MUJOCO_GL": backend}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
    if done.returncode:
        logger.info("MUJOCO_GL=%s does not work here: %s", backend, done.stderr.strip().rsplit("\n", 1)[-1])
    return done.returncode == 0
