"""Episodes asked about, and a second walk through them that finds each answer again by other means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from flagscale_vla.records import Text
from flagscale_vla.sim.episodes import record_episode
from flagscale_vla.sim.questions.asking import Asking, Refusal, Sample

PIXELS = 112
STEPS, HORIZON = 8, 16
MAGENTA = (1.0, 0.0, 1.0, 1.0)


@dataclass
class Asked:
    """One episode, what came of asking about it, and what a second walk saw at each frame and at the end."""

    episode: object
    samples: list[Sample]
    refused: list[Refusal]
    moments: list[Moment] = field(default_factory=list)

    def of(self, kind: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.kind.value == kind]


@dataclass
class Moment:
    """What the simulator said at one frame of the second walk."""

    frames: dict[str, np.ndarray]
    state: np.ndarray
    phase: str
    hand: np.ndarray
    solved: bool
    shown: dict[tuple[str, str], np.ndarray]
    """(camera, thing) to the pixels that change where the thing is painted; empty where nobody asks"""
    middles: dict[str, np.ndarray]
    depths: dict[str, float]
    """level metres from the camera to each thing's middle"""
    reaches: dict[str, float]
    """metres from the gripper to each thing's nearest corner"""
    places: dict[str, np.ndarray]
    """pixel in the front picture of each thing's middle"""


def ask_about(world, *, seed: int, number: int, count: int) -> Asked:
    """Record an episode with its truth and ask about it."""
    episode = record_episode(world, seed=seed, number=number, noise=0.4, max_steps=0, truth=True)
    assert episode is not None
    asking = Asking(count=count, steps=STEPS, horizon=HORIZON, seed=0)
    answers = list(asking.ask(episode, world.scene))
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    return Asked(episode, [answer for answer in answers if isinstance(answer, Sample)], refused)


def walk_again(world, asked: Asked, *, seed: int, model, get_data, grip: str) -> None:
    """Play the same episode once more and note what is true at each of its frames."""
    world.reset(seed)
    shocks = np.random.default_rng([seed, 2])
    solved = False
    placed = {sample.meta["frame"] for kind in ("box", "point", "count") for sample in asked.of(kind)}
    for position, frame in enumerate([*asked.episode.frames, None]):
        asked.moments.append(look(world, model, get_data(), grip, solved))
        if position in placed:
            asked.moments[-1].shown = painted(world, model, asked.moments[-1].frames)
        if frame is not None:
            shock = shocks.normal(size=frame.action.shape) * 0.4 * world.noise_share
            # The expert's program moves on when it is asked.
            np.testing.assert_array_equal(world.expert_action(), frame.action)
            asked.moments[-1].phase = world.phase()
            solved = world.step(np.clip(frame.action + shock, -1.0, 1.0).astype(np.float32))


def look(world, model, data, grip: str, solved: bool) -> Moment:
    seen = world.observe()
    hand = data.site(grip).xpos.copy()
    corners = {thing.name: corners_of(model, data, thing) for thing in world.scene.things}
    middles = {name: (points.min(axis=0) + points.max(axis=0)) / 2 for name, points in corners.items()}
    return Moment(
        frames=seen.images,
        state=seen.state,
        phase=world.phase(),
        hand=hand,
        solved=solved,
        shown={},
        middles=middles,
        depths={name: depth_of(world, model, data, middle) for name, middle in middles.items()},
        reaches={name: float(np.linalg.norm(points - hand, axis=1).min()) for name, points in corners.items()},
        places={name: seen_from_front(world, model, data, middle) for name, middle in middles.items()},
    )


def depth_of(world, model, data, point) -> float:
    """How far away on the table, as the front camera looks."""
    camera = data.camera(world._cameras._views["front"].camera)
    ahead = -camera.xmat.reshape(3, 3)[:2, 2]
    return float((point - camera.xpos)[:2] @ ahead / np.linalg.norm(ahead))


def painted(world, model, frames) -> dict[tuple[str, str], np.ndarray]:
    """Which pixels change where a thing is painted magenta: nothing is asked of segmentation."""
    changed = {}
    for thing in world.scene.things:
        with paint(model, thing):
            world._cameras.forget()
            for camera, frame in world.observe().images.items():
                changed[camera, thing.name] = (frame != frames[camera]).any(axis=-1)
    world._cameras.forget()
    return changed


@contextmanager
def paint(model, thing) -> Iterator[None]:
    geoms, sites = list(thing.geoms), list(thing.sites)
    before = model.geom_rgba[geoms].copy(), model.geom_matid[geoms].copy(), model.site_rgba[sites].copy()
    model.geom_rgba[geoms], model.geom_matid[geoms], model.site_rgba[sites] = MAGENTA, -1, MAGENTA
    yield
    model.geom_rgba[geoms], model.geom_matid[geoms], model.site_rgba[sites] = before


def corners_of(model, data, thing) -> np.ndarray:
    """f64[n, 3], the corners of its meshes and shapes in the world."""
    corners = []
    for geom in thing.geoms:
        axes = data.geom_xmat[geom].reshape(3, 3)
        if model.geom_dataid[geom] >= 0:
            mesh = model.geom_dataid[geom]
            first = model.mesh_vertadr[mesh]
            points = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
        else:
            half = model.geom_aabb[geom][3:]
            points = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
        corners.append(points @ axes.T + data.geom_xpos[geom])
    corners += [data.site_xpos[site][None] for site in thing.sites]
    return np.concatenate(corners)


def seen_from_front(world, model, data, point) -> np.ndarray:
    """(x, y) in the front picture, by a projection matrix."""
    view = world._cameras._views["front"]
    camera = model.camera(view.camera).id
    to_camera = np.eye(4)
    to_camera[:3, :3] = data.cam_xmat[camera].reshape(3, 3).T
    to_camera[:3, 3] = -to_camera[:3, :3] @ data.cam_xpos[camera]
    focal = 1 / np.tan(np.radians(model.cam_fovy[camera]) / 2)
    x, y, z, _ = to_camera @ np.append(point, 1.0)
    clip = np.array([focal * x / -z, -focal * y / -z])
    if view.turned:
        clip = -clip
    return (clip + 1) / 2 * PIXELS - 0.5


def question(sample: Sample) -> str:
    """The first question of a sample."""
    return next(part.text for part in sample.segments if isinstance(part, Text) and not part.supervised)


def answer(sample: Sample) -> str:
    """The last answer of a sample."""
    return [part.text for part in sample.segments if isinstance(part, Text) and part.supervised][-1]


def places(sample: Sample, kind: str) -> list[list[int]]:
    """The boxes or points of an answer."""
    return [entry[kind] for entry in json.loads(answer(sample))]
