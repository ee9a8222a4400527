"""How a LeRobot dataset of version 3.0 is laid out: its columns, files and fixed names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from flagscale_vla.config.export_lerobot import PictureColumn, VideoConfig
from flagscale_vla.data.lerobot.survey import FrameShape
from flagscale_vla.robots.embodiments import Embodiment

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
FILES_PER_CHUNK = 1000
STATE_KEY = "observation.state"
ACTION_KEY = "action"
COUNTERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Columns that every dataset has, and their dtypes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The dataset that is written."""

    root: Path
    robot: Embodiment
    shape: FrameShape
    pictures: PictureColumn
    video: VideoConfig

    @property
    def cameras(self) -> dict[str, tuple[str, int, int]]:
        """Camera, height and width by column, in the robot's order."""
        sides = {name: (height, width) for name, height, width in self.shape.pictures}
        return {f"observation.images.{name}": (name, *sides[name]) for name in self.robot.cameras}

    @property
    def videos(self) -> tuple[str, ...]:
        """Columns that are mp4 files."""
        return tuple(self.cameras) if self.pictures is PictureColumn.video else ()

    def data_file(self, number: int) -> Path:
        """The parquet file of a number, below the root."""
        return Path(DATA_PATH.format(chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK))

    def video_file(self, key: str, number: int) -> Path:
        """The mp4 file of a number, below the root."""
        chunk, file = divmod(number, FILES_PER_CHUNK)
        return Path(VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file))

    def features(self) -> dict[str, Any]:
        """The `features` of `info.json`."""
        cameras = {key: self._camera(height, width) for key, (_, height, width) in self.cameras.items()}
        vectors = {
            key: {"dtype": "float32", "shape": [len(names)], "names": list(names)}
            for key, names in ((STATE_KEY, self.robot.state), (ACTION_KEY, self.robot.action))
        }
        counters = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in COUNTERS.items()}
        return cameras | vectors | counters

    def _camera(self, height: int, width: int) -> dict[str, Any]:
        names = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
        if self.pictures is PictureColumn.image:
            return {"dtype": "image", **names}
        about = {
            "video.height": height,
            "video.width": width,
            "video.codec": self.video.codec.value,
            "video.pix_fmt": "yuv420p",
            "video.fps": self.robot.fps,
            "video.channels": 3,
            "video.g": self.video.gop,
            "video.crf": self.video.crf,
            "has_audio": False,
            "is_depth_map": False,
        }
        return {"dtype": "video", **names, "info": about}

    def schema(self) -> pa.Schema:
        """Of the data files; its metadata tell Hugging Face's `datasets` which columns are pictures."""
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        fields = [] if self.videos else [(key, picture) for key in self.cameras]
        fields += [(key, vector_type(len(names))) for key, names in self._vectors()]
        fields += [(key, pa.type_for_alias(dtype)) for key, dtype in COUNTERS.items()]
        about = {"info": {"features": {key: hugging_face(kind) for key, kind in fields}}}
        return pa.schema(fields, metadata={"huggingface": json.dumps(about)})

    def _vectors(self) -> Sequence[tuple[str, Sequence[str]]]:
        return (STATE_KEY, self.robot.state), (ACTION_KEY, self.robot.action)


def vector_type(width: int) -> pa.DataType:
    """Of a column of vectors; LeRobot keeps those of one number as scalars."""
    return pa.list_(pa.float32(), width) if width > 1 else pa.float32()


def hugging_face(kind: pa.DataType) -> Mapping[str, Any]:
    """A column's type as `datasets` writes it into a parquet file."""
    if pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": {"dtype": "float32", "_type": "Value"}, "length": kind.list_size, "_type": "List"}
    return {"dtype": "float32" if pa.types.is_float32(kind) else str(kind), "_type": "Value"}
