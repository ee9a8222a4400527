"""`meta/info.json`: what columns a LeRobot dataset has, and where its files lie.

Format: https://github.com/huggingface/lerobot, `datasets/utils.py` and `datasets/feature_utils.py` (v2.1, v3.0).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
PICTURES = ("image", "video")
NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One column: numbers of a shape, or the pictures of a camera."""

    key: str
    dtype: str
    """a NumPy name, `string`, or `image` (bytes in the parquet files) or `video` (mp4 files)"""
    shape: tuple[int, ...]
    names: tuple[str, ...]
    """one for each number of a row, as `info.json` gives them, whatever it nests them in; empty where it does not"""
    is_depth: bool

    @property
    def is_picture(self) -> bool:
        """Whether it is a camera's."""
        return self.dtype in PICTURES

    @property
    def is_numeric(self) -> bool:
        """Whether its rows are numbers."""
        return self.dtype in NUMBERS

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """The parts of `info.json` that a reader needs."""

    root: Path
    version: str
    fps: float
    robot: str
    """`robot_type`; empty where it is not told"""
    features: Mapping[str, Feature]
    num_episodes: int
    num_frames: int
    chunks_size: int
    """v2: episodes in a folder"""
    data_path: str
    video_path: str
    """both are templates for `str.format`"""

    @property
    def is_v3(self) -> bool:
        """Whether a file holds many episodes."""
        return self.version == "v3.0"


def load_info(root: Path) -> DatasetInfo:
    """Read `root/meta/info.json`.

    Raises:
        ValueError: it is missing, damaged, or of a version that is not read; names the key.
    """
    path = root / INFO
    if not path.is_file():
        raise ValueError(f"{path} is missing: {root} is no LeRobot dataset")
    entry = load_json(path)
    version = str(entry.get("codebase_version"))
    if version not in VERSIONS:
        raise ValueError(f"{path}: codebase_version={version} is not read; these are: {', '.join(VERSIONS)}")
    try:
        features = {key: make_feature(key, feature) for key, feature in entry["features"].items()}
        return DatasetInfo(
            root=root,
            version=version,
            fps=float(entry["fps"]),
            robot=str(entry.get("robot_type") or ""),
            features=features,
            num_episodes=int(entry["total_episodes"]),
            num_frames=int(entry["total_frames"]),
            chunks_size=int(entry.get("chunks_size", 1000)),
            data_path=str(entry["data_path"]),
            video_path=str(entry.get("video_path") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from error


def load_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it holds something else.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{path} must hold an object, not a {type(entry).__name__}")
    return entry


def make_feature(key: str, entry: Mapping[str, Any]) -> Feature:
    """One entry of `features`."""
    shape = tuple(int(side) for side in entry["shape"]) or (1,)
    names = tuple(flatten_names(entry.get("names")))
    about = {**(entry.get("video_info") or {}), **(entry.get("info") or {})}
    return Feature(
        key=key,
        dtype=str(entry["dtype"]),
        shape=shape,
        names=names if len(names) == math.prod(shape) and len(set(names)) == len(names) else (),
        is_depth=bool(about.get("is_depth_map") or about.get("video.is_depth_map")),
    )


def flatten_names(names: object) -> list[str]:
    """Names out of a list, a list in an object as `{"motors": [...]}`, or an object of name to place."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, Mapping):
        if names and all(isinstance(place, int) for place in names.values()):
            return [str(name) for name in sorted(names, key=lambda name: int(names[name]))]
        return [name for value in names.values() for name in flatten_names(value)]
    if isinstance(names, (list, tuple)):
        return [name for value in names for name in flatten_names(value)]
    return []
