"""Which stretch of which episode does what: annotation JSON, by task a list of

    {"raw_task": "pour the water", "task": "grasp the bottle", "frame": {"start_frame": 1, "end_frame": 96},
     "data": {"high": "….mp4", "left": "….mp4", "right": "….mp4", "state": "….hdf5"}}

`start_frame` and `end_frame` count from 1, and both belong to the stretch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale_vla.config.convert_agilex import AgilexRun
from flagscale_vla.data.convert.converter import Refusal

CAMERAS = {"cam_high": "high", "cam_right_wrist": "right", "cam_left_wrist": "left"}
"""Our names, in the order in which a model sees the pictures, and the annotations' names."""
STATE = "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One sub-task of an episode."""

    number: int
    """over all annotations of a run, from 0"""
    place: str
    """file, task and place in its list, from 1"""
    task: str
    subtask: str
    first: int
    """row it begins with"""
    last: int
    """row behind its last"""
    films: tuple[str, ...]
    """paths in the order of `CAMERAS`"""
    state: str
    """path of the HDF5 file, which names the episode"""

    @property
    def rows(self) -> int:
        """Rows of the recording."""
        return self.last - self.first


def read_annotations(run: AgilexRun) -> Iterator[Stretch | Refusal]:
    """Every stretch in the order of the files, and what is none.

    Raises:
        ValueError: a file is missing, no JSON, or no object of lists.
    """
    number = 0
    for file in map(Path, run.annotations):
        root = Path(run.root) if run.root else file.parent
        for task, entries in load_tasks(file).items():
            for place, entry in enumerate(entries, 1):
                yield read_stretch(f"{file}: {task}: {place}", number, entry, root)
                number += 1


def load_tasks(file: Path) -> dict[str, list[object]]:
    """The lists by task.

    Raises:
        ValueError: the file is missing, no JSON, or no object of lists.
    """
    if not file.is_file():
        raise ValueError(f"annotations={file}: there is no such file")
    try:
        tasks = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is not JSON: {error}") from error
    if not isinstance(tasks, dict) or not all(isinstance(entries, list) for entries in tasks.values()):
        raise ValueError(f"{file}: must be an object that has a list of stretches for each task")
    return tasks


def read_stretch(place: str, number: int, entry: object, root: Path) -> Stretch | Refusal:
    """One entry of a list."""
    match entry:
        case {
            "raw_task": str(task),
            "task": str(subtask),
            "frame": {"start_frame": int(start), "end_frame": int(end)},
            "data": dict(data),
        } if task and 1 <= start <= end and (paths := find_paths(data, root)):
            *films, state = paths
            return Stretch(
                number=number,
                place=place,
                task=task,
                subtask=subtask,
                first=start - 1,
                last=end,
                films=tuple(films),
                state=state,
            )
    shape = "raw_task, task, frame {start_frame, end_frame} from 1 on, and data {high, left, right, state}"
    return Refusal(place=place, reason=f"annotation is no stretch: it needs {shape}, not {entry!r:.120}")


def find_paths(data: dict[str, Any], root: Path) -> tuple[str, ...]:
    """The paths of the films and of the state; none where one is missing."""
    names = [name for key in (*CAMERAS.values(), STATE) if isinstance(name := data.get(key), str) and name]
    return tuple(str(root / name) for name in names) if len(names) > len(CAMERAS) else ()
