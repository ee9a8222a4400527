"""A LeRobot dataset of any version, by episodes and frames."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.lerobot.episodes import EpisodeInfo, load_episodes, load_tasks
from flagscale_vla.data.lerobot.info import DatasetInfo, Feature, load_info
from flagscale_vla.data.lerobot.table import Numbers, numbers, open_file, picture_bytes
from flagscale_vla.data.lerobot.video import read_frames

Frame = bytes | NDArray[np.uint8]
"""A picture: encoded as an image column holds it, or RGB pixels u8[h, w, 3] of a video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeRobotDataset:
    """What `meta` says, and the way to the frames. May be pickled; files are opened where they are read."""

    info: DatasetInfo
    tasks: Mapping[int, str]
    """instruction by `task_index`"""
    episodes: Mapping[int, EpisodeInfo]
    """by index, in the dataset's order"""
    order: tuple[int, ...]
    """the episodes' indices"""
    starts: tuple[int, ...]
    """index over the whole dataset of each one's first frame, growing"""

    @staticmethod
    def open(root: Path) -> LeRobotDataset:
        """Read the dataset's meta files.

        Raises:
            ValueError: one is missing or damaged, or of another version than 2.0, 2.1 and 3.0.
        """
        info = load_info(root)
        episodes = load_episodes(info)
        starts = tuple(episode.start for episode in episodes.values())
        return LeRobotDataset(
            info=info, tasks=load_tasks(info), episodes=episodes, order=tuple(episodes), starts=starts
        )

    @property
    def features(self) -> Mapping[str, Feature]:
        """Columns by key."""
        return self.info.features

    def episode(self, index: int) -> EpisodeInfo:
        """One episode.

        Raises:
            ValueError: there is none of that index.
        """
        if index not in self.episodes:
            raise ValueError(f"episode {index} is not in {self.info.root}, which has {len(self.episodes)} episodes")
        return self.episodes[index]

    def frame_table(self, episode: int, keys: Sequence[str]) -> dict[str, Numbers]:
        """Columns of an episode, each [frames, width] in the file's dtype; `frame_index` has been checked.

        Args:
            keys: of numeric features, `timestamp` and `task_index` among them.

        Raises:
            ValueError: a column is missing, damaged, has nulls or another shape than `info.json` says, or the rows are
                not the episode's frames in order.
        """
        about = self.episode(episode)
        file = open_file(about.data)
        start, stop = file.rows(episode, about.length)
        found = {key: numbers(file.column(key, start, stop), self.feature(key)) for key in (*keys, "frame_index")}
        order = found.pop("frame_index") if "frame_index" not in keys else found["frame_index"]
        if not np.array_equal(order[:, 0], np.arange(about.length)):
            raise ValueError(f"frames are out of order: frame_index of episode {episode} in {about.data}")
        return found

    def frames(self, episode: int, key: str, wanted: Sequence[int]) -> Iterator[Frame]:
        """Pictures of a camera at frames of an episode, in growing order.

        Raises:
            ValueError: a file is missing or damaged, or has no such frame.
        """
        about, feature = self.episode(episode), self.feature(key)
        if not feature.is_picture:
            raise ValueError(f"{key!r} of {self.info.root} is {feature.dtype}, no camera")
        if feature.dtype == "image":
            file = open_file(about.data)
            start, _ = file.rows(episode, about.length)
            # Only the rows that are wanted: joining a whole episode's pictures for one of them takes as long as all.
            rows = file.column(key, start + wanted[0], start + wanted[-1] + 1)
            yield from picture_bytes(rows, self.info.root, [frame - wanted[0] for frame in wanted], key)
            return
        times = self.frame_table(episode, ["timestamp"])["timestamp"][:, 0].astype(np.float64)
        place = about.videos[key]
        yield from read_frames(place.path, [place.start + float(times[frame]) for frame in wanted], self.info.fps)

    def feature(self, key: str) -> Feature:
        """One column.

        Raises:
            ValueError: there is none of that name; lists those that there are.
        """
        if key not in self.features:
            raise ValueError(
                f"{key!r} is no feature of {self.info.root}; there are: {', '.join(sorted(self.features))}"
            )
        return self.features[key]

    def locate(self, index: int) -> tuple[int, int]:
        """(episode, frame) of an index over all frames of the dataset.

        Raises:
            ValueError: there are not so many frames.
        """
        if not 0 <= index < self.info.num_frames:
            raise ValueError(f"frame {index} is not in {self.info.root}, which has {self.info.num_frames} frames")
        place = bisect_right(self.starts, index) - 1
        return self.order[place], index - self.starts[place]
