"""The `meta` folder of a LeRobot dataset of version 3.0."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flagscale_vla.data.lerobot.episodes import ACTION_CONFIG, TASKS_V3
from flagscale_vla.data.lerobot.info import INFO
from flagscale_vla.data.lerobot.layout import (
    ACTION_KEY,
    COUNTERS,
    DATA_PATH,
    EPISODES_PATH,
    FILES_PER_CHUNK,
    STATE_KEY,
    VIDEO_PATH,
    Layout,
)
from flagscale_vla.data.lerobot.stats import Stats, number_stats, picture_stats
from flagscale_vla.data.lerobot.write_file import EpisodePlan, FileLog, FilePlan
from flagscale_vla.reports.outputs import replace_text

STATS = "meta/stats.json"


def write_meta(
    layout: Layout, files: Sequence[FilePlan], logs: Sequence[FileLog], tasks: Sequence[str]
) -> dict[str, Stats]:
    """Write episodes, tasks, statistics and, as the last, `info.json`; returns the statistics of the whole dataset."""
    (layout.root / EPISODES_PATH).parent.mkdir(parents=True, exist_ok=True)
    rows = [
        episode_row(layout, plan.number, episode, log.starts[place], log.stats[place], tasks)
        for plan, log in zip(files, logs, strict=True)
        for place, episode in enumerate(plan.episodes)
    ]
    pq.write_table(pa.Table.from_pylist(rows), layout.root / EPISODES_PATH)
    pq.write_table(tasks_table(tasks), layout.root / TASKS_V3)
    stats = dataset_stats(layout, [layout.root / layout.data_file(plan.number) for plan in files], logs)
    replace_text(layout.root / STATS, json.dumps(stats, indent=4))
    replace_text(layout.root / INFO, json.dumps(info(layout, files, tasks), indent=4))
    return stats


def episode_row(
    layout: Layout, file: int, episode: EpisodePlan, start: float, stats: Mapping[str, Stats], tasks: Sequence[str]
) -> dict[str, Any]:
    """A row of `meta/episodes`."""
    chunk, place = divmod(file, FILES_PER_CHUNK)
    length = len(episode.frames)
    row: dict[str, Any] = {
        "episode_index": episode.index,
        "tasks": [tasks[index] for index in dict.fromkeys(episode.task_indices)],
        "length": length,
        "data/chunk_index": chunk,
        "data/file_index": place,
        "dataset_from_index": episode.start,
        "dataset_to_index": episode.start + length,
    }
    for key in layout.videos:
        row |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": place}
        row |= {f"videos/{key}/from_timestamp": start}
        row |= {f"videos/{key}/to_timestamp": start + length / layout.robot.fps}
    row |= {f"stats/{key}/{name}": value for key, entry in stats.items() for name, value in entry.items()}
    row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    return row | {ACTION_CONFIG: parts_of(episode)}


def parts_of(episode: EpisodePlan) -> list[dict[str, object]]:
    """Runs of frames with one subtask or phase, as `action_config` names them; none where frames have none."""
    if not all(frame.part for frame in episode.frames):
        return []
    parts: list[dict[str, object]] = []
    start = 0
    for text, frames in groupby(frame.part for frame in episode.frames):
        end = start + len(list(frames))
        parts.append({"start_frame": start, "end_frame": end, "action_text": text})
        start = end
    return parts


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """`meta/tasks.parquet`: LeRobot looks for the words in the index of a pandas frame, which its metadata name."""
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    about = {
        "index_columns": ["task"],
        "column_indexes": [index | {"metadata": {"encoding": "UTF-8"}}],
        "columns": [column | {"metadata": None} for column in columns],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(about)})
    return pa.table({"task_index": range(len(tasks)), "task": list(tasks)}, schema=schema)


def dataset_stats(layout: Layout, files: Sequence[Path], logs: Sequence[FileLog]) -> dict[str, Stats]:
    """`meta/stats.json`: of every frame's numbers, and of the pictures that the files' histograms count."""
    stats = {}
    for key in (STATE_KEY, ACTION_KEY, *COUNTERS):
        parts = [pq.read_table(path, columns=[key]).column(0).combine_chunks() for path in files]
        flat = [part.flatten() if pa.types.is_nested(part.type) else part for part in parts]
        values = np.concatenate([part.to_numpy(zero_copy_only=False) for part in flat])
        stats[key] = number_stats(values.reshape(sum(len(part) for part in parts), -1))
    pictures = sum(log.pictures for log in logs)
    for key in layout.cameras:
        counts = np.sum([log.histograms[key] for log in logs], axis=0)
        stats[key] = picture_stats(counts, pictures)
    return stats


def info(layout: Layout, files: Sequence[FilePlan], tasks: Sequence[str]) -> dict[str, Any]:
    """`meta/info.json`."""
    episodes = [episode for plan in files for episode in plan.episodes]
    return {
        "codebase_version": "v3.0",
        "robot_type": layout.robot.name,
        "total_episodes": len(episodes),
        "total_frames": sum(len(episode.frames) for episode in episodes),
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": layout.robot.fps,
        "splits": splits(episodes),
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if layout.videos else None,
        "features": layout.features(),
    }


def splits(episodes: Sequence[EpisodePlan]) -> dict[str, str]:
    """Which episodes are which split's, as `first:end`."""
    found = {}
    for split, group in groupby(episodes, key=lambda episode: episode.frames[0].split):
        members = list(group)
        found[split] = f"{members[0].index}:{members[-1].index + 1}"
    return found
