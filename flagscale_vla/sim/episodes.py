"""One expert episode, from the seed to the samples that a shard holds."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from flagscale_vla.records import Action, Image, Segment, State, Text
from flagscale_vla.sim.worlds.things import Poses
from flagscale_vla.sim.worlds.world import World

JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What was seen at one control step, and what the expert would do there."""

    images: tuple[Image, ...]
    state: NDArray[np.float32]
    """f32[A0]"""
    action: NDArray[np.float32]
    """f32[A0], the expert's, clipped, without noise"""
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the simulator knew of an episode of n frames, for whoever asks questions about it."""

    poses: tuple[Poses, ...]
    """of each frame, and last of how it ended; n + 1"""
    ending: tuple[Image, ...]
    """what was seen after the last step"""
    subtasks: Mapping[str, str]
    """the expert's phases in its order, as sentences"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """An episode that the expert has finished."""

    task: str
    robot: str
    fps: int
    number: int
    instruction: str
    frames: tuple[Frame, ...]
    truth: Truth | None
    """none where nobody will ask"""

    def actions(self) -> NDArray[np.float32]:
        """The expert's actions, f32[steps, A0]."""
        return np.stack([frame.action for frame in self.frames])


def record_episode(
    world: World, *, seed: int, number: int, noise: float, max_steps: int, truth: bool = False
) -> Episode | None:
    """Let the expert do the task once; None where it has not done it after `max_steps`.

    What is executed carries noise, so that the data also shows how to come back to the path; what is stored is the
    expert's own answer.

    Args:
        seed: of placements, phrasing and noise.
        number: the episode's number within its task.
        noise: standard deviation of the noise, in units of the action; each dim takes the world's `noise_share` of it.
        max_steps: control steps before giving up; 0 for the world's own limit.
        truth: whether to keep what the simulator knows. The frames are the same.
    """
    world.reset(seed)
    shocks = np.random.default_rng([seed, 2])
    frames: list[Frame] = []
    poses: list[Poses] = []
    for _ in range(max_steps or world.max_steps):
        frame = take_frame(world)
        frames.append(frame)
        if truth:
            poses.append(world.poses())
        shock = shocks.normal(size=frame.action.shape) * noise * world.noise_share
        if world.step(np.clip(frame.action + shock, -1.0, 1.0).astype(np.float32)):
            return Episode(
                task=world.task,
                robot=world.robot,
                fps=world.embodiment.fps,
                number=number,
                instruction=world.instruction,
                frames=tuple(frames),
                truth=take_truth(world, poses) if truth else None,
            )
    return None


def take_frame(world: World) -> Frame:
    """Look, and ask the expert."""
    images, state = take_images(world)
    # The expert's program may move on when it is asked: its phase is the one that this action belongs to.
    action = world.expert_action()
    return Frame(images=images, state=state, phase=world.phase(), action=action)


def take_truth(world: World, poses: list[Poses]) -> Truth:
    """What is known of an episode that has just ended, from the poses of its frames."""
    images, _ = take_images(world)
    return Truth(poses=(*poses, world.poses()), ending=images, subtasks=dict(world.subtasks))


def take_images(world: World) -> tuple[tuple[Image, ...], NDArray[np.float32]]:
    """What is seen now, encoded, and the robot's state."""
    seen = world.observe()
    images = tuple(Image(name=name, encoded=encode_jpeg(seen.images[name])) for name in world.embodiment.cameras)
    return images, seen.state


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of an RGB picture u8[h, w, 3], with colours at full resolution: objects are a few pixels wide."""
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def samples(episode: Episode, horizon: int) -> Iterator[tuple[str, list[Segment], dict[str, object]]]:
    """One sample per frame as `ShardWriter.write` takes it: key, segments, and what `KEY.json` keeps.

    Args:
        horizon: steps of the chunk stored with each frame, its own first; past the end the last is repeated, invalid.
    """
    actions = episode.actions()
    for position, frame in enumerate(episode.frames):
        meta: dict[str, object] = {
            "fps": episode.fps,
            "task": episode.task,
            "episode": episode.number,
            "frame": position,
            "num_frames": len(episode.frames),
            "phase": frame.phase,
            "instruction": episode.instruction,
        }
        segments: list[Segment] = [
            *frame.images,
            State(values=frame.state, robot=episode.robot),
            Text(text=episode.instruction, supervised=False),
            chunk_at(actions, position, horizon, episode.robot),
        ]
        yield f"{key_of(episode)}-{position:04d}", segments, meta


def key_of(episode: Episode) -> str:
    """What the keys of an episode's samples begin with."""
    return f"{episode.task.replace('/', '-').replace('_', '-')}-{episode.number:06d}"


def chunk_at(actions: NDArray[np.float32], position: int, horizon: int, robot: str) -> Action:
    """The `horizon` actions from `position` on."""
    steps = np.arange(position, position + horizon)
    last = len(actions) - 1
    return Action(values=actions[np.minimum(steps, last)], valid=steps <= last, robot=robot)
