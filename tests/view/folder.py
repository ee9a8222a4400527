"""Shards of two short episodes, for the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flagscale_vla.data.shards import ShardWriter
from flagscale_vla.records import RawSample
from flagscale_vla.robots.embodiments import save_embodiments
from tests.samples import PANDA, SAWYER, robot_sample

FRAMES = 5


def write_episodes(folder: Path, others: Sequence[RawSample]) -> Path:
    """Two episodes of `FRAMES` frames in one shard, then samples that belong to none."""
    with ShardWriter(folder, "train", max_bytes=10_000_000) as writer:
        for number in range(2 * FRAMES):
            raw = robot_sample(number)
            meta = {"task": "door", "episode": number // FRAMES, "frame": number % FRAMES, "phase": "reach"}
            writer.write(raw.key, raw.segments, meta)
        for raw in others:
            writer.write(raw.key, raw.segments, {})
    save_embodiments(folder, (SAWYER, PANDA))
    return folder
