"""What the simulator tells about a frame: pixels, projections and distances agree, and asking changes nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from flagscale_vla.sim.worlds.tasks import LIGHT_TASKS, make_world
from flagscale_vla.sim.worlds.things import GRIPPER
from tests.sim.extras import needs_sim, needs_sim_full

PIXELS = 112
CONVEX = [
    ("metaworld/button-press-topdown", "front", "red button"),
    ("metaworld/pick-place", "front", "puck"),
    ("metaworld/pick-place", "wrist", "puck"),
]


@pytest.fixture
def world(request):
    found = make_world(request.param, PIXELS)
    found.reset(3)
    for _ in range(4):
        found.step(found.expert_action())
    yield found
    found.close()


def thing(world, name):
    return next(thing for thing in world.scene.things if thing.name == name)


def mask(world, poses, camera, name):
    return world.scene.masks(poses, camera)[[thing.name for thing in world.scene.things].index(name)]


def by(tasks):
    return pytest.mark.parametrize("world", tasks, indirect=True)


def check_asking_leaves_no_trace(world):
    before = world.observe()
    poses = world.poses()
    for camera in world.embodiment.cameras:
        world.scene.masks(poses, camera)
        world.scene.lens(poses, camera)
    after = world.observe()
    for camera, frame in before.images.items():
        np.testing.assert_array_equal(frame, after.images[camera])


def check_a_moment_can_be_looked_at_later(world):
    poses = world.poses()
    then = {camera: world.scene.masks(poses, camera) for camera in world.embodiment.cameras}
    for _ in range(3):
        world.step(world.expert_action())
    moved = world.scene.masks(world.poses(), "wrist")
    for camera, masks in then.items():
        np.testing.assert_array_equal(masks, world.scene.masks(poses, camera))
    assert not np.array_equal(moved, then["wrist"])


@needs_sim
@by(["metaworld/drawer-open"])
def test_asking_leaves_no_trace(world):
    check_asking_leaves_no_trace(world)


@needs_sim
@by(["metaworld/drawer-open"])
def test_a_moment_can_be_looked_at_later(world):
    check_a_moment_can_be_looked_at_later(world)


@needs_sim
@pytest.mark.parametrize(("world", "camera", "name"), CONVEX, indirect=["world"])
def test_projected_corners_bound_the_pixels(world, camera, name):
    """A wrong sign, a wrong half pixel or a picture that is not turned would miss a thing of ten pixels."""
    poses = world.poses()
    rows, columns = np.nonzero(mask(world, poses, camera, name))
    corners = world.scene.lens(poses, camera).project(world.scene.corners(poses, thing(world, name)))
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max(), rows.max()], [*corners.min(0), *corners.max(0)], atol=3.5
    )


@needs_sim
@by(["metaworld/pick-place"])
def test_pixels_are_where_the_colour_is(world):
    """The puck is the only thing in the wrist's view that is red and dark; the fingertips are bright."""
    frame = world.observe().images["wrist"].astype(int)
    red = (frame[..., 0] > 60) & (frame[..., 1] < 20) & (frame[..., 0] < 160)
    shown = mask(world, world.poses(), "wrist", "puck")
    assert (red & shown).sum() > 0.9 * max(red.sum(), 1)
    assert red.sum() > 50


@needs_sim
@by(["metaworld/button-press-topdown"])
def test_the_lens_measures_as_the_eye_does(world):
    """A step to the camera's right moves a projected point right and not up; away from it, up."""
    poses = world.poses()
    lens, hand = world.scene.lens(poses, "front"), world.scene.hand(poses)
    here, right, away = lens.project(np.stack([hand, hand + 0.05 * lens.right, hand + 0.05 * lens.away]))
    assert right[0] - here[0] > 3
    assert abs(right[1] - here[1]) < 0.5
    assert away[1] < here[1] - 0.5
    assert world.scene.distance(poses, thing(world, GRIPPER), hand) < 0.02


@needs_sim
def test_invisible_shapes_hide_nothing():
    make_world("metaworld/reach", PIXELS).close()
    cameras = sys.modules["flagscale_vla.sim.worlds.cameras"]
    mujoco = cameras.mujoco
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 3'/><camera name='top' pos='0 0 1'/><geom size='.1'/>"
        "<site pos='0 0 .3' size='.1' rgba='1 0 0 -0.5'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    views = {"top": cameras.View(camera="top")}
    looker = cameras.Cameras(model, views, pixels=32, task="ball")
    kinds = looker.segment(data, "top")[..., 1]
    looker.close()
    assert set(np.unique(kinds)) == {-1, int(mujoco.mjtObj.mjOBJ_GEOM)}


@needs_sim
def test_every_task_has_things_and_words():
    for task in LIGHT_TASKS:
        world = make_world(task, 0)
        world.reset(0)
        phases = []
        for _ in range(world.max_steps):
            phases.append(world.phase())
            if world.step(world.expert_action()):
                break
        # The expert's phases are all in words, and the first time of each comes in the plan's order.
        assert list(dict.fromkeys(phases)) == [phase for phase in world.subtasks if phase in phases]
        assert all(thing.geoms or thing.sites for thing in world.scene.things)
        assert not {thing.name for thing in world.scene.things} & set(world.scene.others)
        world.close()


class TestFullTier:
    pytestmark = needs_sim_full

    @by(["robosuite/Stack/UR5e", "libero/libero_spatial/2"])
    def test_scene(self, world):
        check_asking_leaves_no_trace(world)
        check_a_moment_can_be_looked_at_later(world)
        assert list(world.subtasks)[:3] == ["reach", "lower", "grasp"]
        assert not {thing.name for thing in world.scene.things} & set(world.scene.others)
        poses = world.poses()
        grip = world.scene.hand(poses)
        np.testing.assert_allclose(grip, world.arm.position, atol=1e-9)
        masks = world.scene.masks(poses, "front")
        assert (masks.sum(axis=(1, 2)) >= 30).sum() >= 3
        # Things are apart: no pixel shows two.
        assert masks.sum(axis=0).max() == 1
