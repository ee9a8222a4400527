"""The episodes of a LeRobot dataset: how long, what for, and in which files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flagscale_vla.data.lerobot.info import DatasetInfo

EPISODES_V2 = "meta/episodes.jsonl"
EPISODES_V3 = "meta/episodes"
TASKS_V2 = "meta/tasks.jsonl"
TASKS_V3 = "meta/tasks.parquet"
ACTION_CONFIG = "action_config"
"""Where datasets as AgiBot-World's and EO-1's keep the parts of an episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtask:
    """A part of an episode, up to `end` (not itself part of it)."""

    end: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPlace:
    """A camera's part of a video file: its first frame is shown at `start` seconds."""

    path: Path
    start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeInfo:
    """One episode."""

    index: int
    length: int
    """frames"""
    tasks: tuple[str, ...]
    subtasks: tuple[Subtask, ...]
    start: int
    """index of its first frame over the whole dataset"""
    data: Path
    """the parquet file with its rows, and in v3 those of others"""
    videos: Mapping[str, VideoPlace]
    """by camera key"""


def load_episodes(info: DatasetInfo) -> dict[int, EpisodeInfo]:
    """All episodes by index, in the dataset's order.

    Raises:
        ValueError: a file is missing or damaged, or the episodes are not those that `info.json` counts.
    """
    listed = list(_episodes_v3(info) if info.is_v3 else _episodes_v2(info))
    found = {episode.index: episode for episode in sorted(listed, key=lambda episode: episode.start)}
    frames = sum(episode.length for episode in found.values())
    if (len(found), frames) != (info.num_episodes, info.num_frames):
        raise ValueError(
            f"{info.root}: {len(found)} episodes of {frames} frames are listed, meta/info.json counts "
            f"total_episodes={info.num_episodes} and total_frames={info.num_frames}; the two must agree"
        )
    return found


def load_tasks(info: DatasetInfo) -> dict[int, str]:
    """The instruction behind each `task_index`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = info.root / (TASKS_V3 if info.is_v3 else TASKS_V2)
    rows = read_rows(path) if info.is_v3 else list(read_lines(path))
    try:
        # pandas writes an index that has no name as a column of this one.
        texts = [row["task"] if "task" in row else row["__index_level_0__"] for row in rows]
        return {int(row["task_index"]): str(text) for row, text in zip(rows, texts, strict=True)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from error


def _episodes_v2(info: DatasetInfo) -> Iterator[EpisodeInfo]:
    start = 0
    path = info.root / EPISODES_V2
    for number, row in enumerate(read_lines(path), 1):
        try:
            episode = _episode_v2(info, row, start)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number} cannot be read: {type(error).__name__} {error}") from error
        yield episode
        start += episode.length


def _episode_v2(info: DatasetInfo, row: Mapping[str, Any], start: int) -> EpisodeInfo:
    index = int(row["episode_index"])
    chunk = index // info.chunks_size
    videos = {
        key: info.video_path.format(episode_chunk=chunk, episode_index=index, video_key=key)
        for key, feature in info.features.items()
        if feature.dtype == "video"
    }
    return EpisodeInfo(
        index=index,
        length=int(row["length"]),
        tasks=tuple(row["tasks"]),
        subtasks=read_subtasks(row.get(ACTION_CONFIG)),
        start=start,
        data=info.root / info.data_path.format(episode_chunk=chunk, episode_index=index),
        videos={key: VideoPlace(path=info.root / path, start=0.0) for key, path in videos.items()},
    )


def _episodes_v3(info: DatasetInfo) -> Iterator[EpisodeInfo]:
    files = sorted((info.root / EPISODES_V3).glob("*/*.parquet"))
    if not files:
        raise ValueError(f"{info.root / EPISODES_V3} holds no chunk-*/file-*.parquet")
    for path in files:
        for number, row in enumerate(read_rows(path, without="stats/")):
            try:
                yield _episode_v3(info, row)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} row {number} cannot be read: {type(error).__name__} {error}") from error


def _episode_v3(info: DatasetInfo, row: Mapping[str, Any]) -> EpisodeInfo:
    videos = {}
    for key in (key for key, feature in info.features.items() if feature.dtype == "video"):
        chunk, file = int(row[f"videos/{key}/chunk_index"]), int(row[f"videos/{key}/file_index"])
        path = info.video_path.format(video_key=key, chunk_index=chunk, file_index=file)
        videos[key] = VideoPlace(path=info.root / path, start=float(row[f"videos/{key}/from_timestamp"]))
    data = info.data_path.format(chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"]))
    return EpisodeInfo(
        index=int(row["episode_index"]),
        length=int(row["length"]),
        tasks=tuple(row["tasks"]),
        subtasks=read_subtasks(row.get(ACTION_CONFIG)),
        start=int(row["dataset_from_index"]),
        data=info.root / data,
        videos=videos,
    )


def read_subtasks(entries: object) -> tuple[Subtask, ...]:
    """The parts of an episode out of its `action_config`, which may be missing, or JSON in a string.

    Raises:
        ValueError: an entry lacks its text or its end, or ends do not grow.
    """
    entries = json.loads(entries) if isinstance(entries, str) else entries
    if not entries:
        return ()
    if not isinstance(entries, list):
        raise ValueError(f"{ACTION_CONFIG} must be a list of objects with end_frame and action_text")
    subtasks = tuple(Subtask(end=int(entry["end_frame"]), text=str(entry["action_text"])) for entry in entries)
    ends = [subtask.end for subtask in subtasks]
    if ends != sorted(ends):
        raise ValueError(f"{ACTION_CONFIG} has end_frame={ends}, which must grow")
    return subtasks


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        ValueError: it is missing, or a line is no object.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number} must hold an object")
            yield row


def read_rows(path: Path, without: str = "\0") -> list[dict[str, Any]]:
    """The rows of a parquet file, less the columns whose names begin with `without`.

    Raises:
        ValueError: it is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if not name.startswith(without)]
        rows: list[dict[str, Any]] = file.read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return rows
