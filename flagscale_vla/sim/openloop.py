"""How well a policy predicts the expert's next actions on held-out frames, without acting on them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.data.place import Place
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.shards import list_shards
from flagscale_vla.data.store import LocalStore, Store
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.policy.client import PolicyClient
from flagscale_vla.records import Action, Image, Observation, RawSample, State, Text

SPLIT = "heldout"
FRAMES = 256
"""Frames measured at most; drawn over all held-out episodes."""
BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Mean absolute errors in standard deviations of the training actions, over valid steps and own dims."""

    frames: int
    error: float
    """of the policy's chunk"""
    mean_action_error: float
    """of always answering with the mean action of the training data"""
    device: str
    """what the policy computed on"""

    @property
    def ratio(self) -> float:
        """The policy's error over that of the mean action: 1 is no better than knowing nothing, 0 is perfect."""
        return self.error / self.mean_action_error


def check_heldout(folder: Path) -> None:
    """Refuse a folder without held-out shards.

    Raises:
        ConfigError: naming the folder.
    """
    if not list_shards(folder, SPLIT):
        raise ConfigError(
            f"shards={folder}: holds no {SPLIT}-*.tar to measure the open-loop error on. "
            "This would pass: the output of record_demo with heldout_episodes above 0"
        )


def measure_open_loop(client: PolicyClient, folder: Path, seed: int) -> OpenLoop:
    """Compare the policy's chunks with the expert's on at most `FRAMES` frames drawn with `seed`.

    Raises:
        BadSampleError: a frame cannot be read.
        ValueError: a frame is of a robot the policy has no statistics of, or no frame has an action.
    """
    store = LocalStore(folder)
    places = list(find_frames(store))
    order = np.random.default_rng([seed, 3]).permutation(len(places))[:FRAMES]
    sums = np.zeros(3)
    for start in range(0, len(order), BATCH):
        samples = [read_sample(store, places[index]) for index in order[start : start + BATCH]]
        sums += compare(client, samples, seed + start)
    if sums[2] == 0:
        raise ValueError(f"{folder}: no held-out frame has an action, so there is nothing to compare with")
    policy, mean, values = sums
    return OpenLoop(frames=len(order), error=policy / values, mean_action_error=mean / values, device=client.device)


def compare(client: PolicyClient, samples: Sequence[RawSample], seed: int) -> NDArray[np.float64]:
    """f64[3]: summed error of the policy, of the mean action, and how many values were compared."""
    chunks = client.infer([observation_of(raw) for raw in samples], seed=seed)
    sums = np.zeros(3)
    for raw, chunk in zip(samples, chunks, strict=True):
        target = action_of(raw)
        steps = min(len(chunk.values), len(target.values))
        valid = target.valid[:steps]
        wanted = client.normalize_action(target.robot, target.values[:steps][valid])
        answered = client.normalize_action(target.robot, chunk.values[:steps][valid])
        # The mean action is zero once normalised.
        sums += np.abs(answered - wanted).sum(), np.abs(wanted).sum(), wanted.size
    return sums


def find_frames(store: Store) -> Iterator[Place]:
    """Where each held-out sample lies, without reading what is in it."""
    for shard in store.list_shards(SPLIT):
        with store.whole(shard) as buffer:
            for group in group_members(walk_tar(buffer, whole=True)):
                yield Place(shard, group.start, group.end - group.start)


def observation_of(raw: RawSample) -> Observation:
    """What the robot saw in a sample.

    Raises:
        ValueError: the sample has no state.
    """
    states = [segment for segment in raw.segments if isinstance(segment, State)]
    if not states:
        raise ValueError(f"{raw.key}: has no state, so it is no frame of a robot")
    asked = [segment for segment in raw.segments if isinstance(segment, Text) and not segment.supervised]
    texts = [segment.text for segment in asked if not segment.assistant]
    images = {segment.name: decode(segment) for segment in raw.segments if isinstance(segment, Image)}
    return Observation(images=images, state=states[0].values, instruction=" ".join(texts), robot=states[0].robot)


def action_of(raw: RawSample) -> Action:
    """What the expert did in a sample.

    Raises:
        ValueError: the sample has no action.
    """
    for segment in raw.segments:
        if isinstance(segment, Action):
            return segment
    raise ValueError(f"{raw.key}: has no action, so there is nothing to compare with")


def decode(image: Image) -> NDArray[np.uint8]:
    """The picture u8[h, w, 3] RGB."""
    return np.asarray(Picture.open(io.BytesIO(image.encoded)).convert("RGB"))
