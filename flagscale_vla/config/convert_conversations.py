"""Settings of `convert_conversations`: rows of questions and answers, about pictures or films or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive
from flagscale_vla.config.convert_rows import RowsRun


class Coordinates(Enum):
    """What the numbers of a box or a point count."""

    unknown = "unknown"
    """nobody says; texts stay as they are"""
    absolute = "absolute"
    """pixels of the picture: read, of the source's; written, of the one in the shard"""
    relative_1 = "relative_1"
    """0 to 1 of its width or height"""
    relative_100 = "relative_100"
    """0 to 100, as Molmo's"""
    relative_1000 = "relative_1000"
    """0 to 1000, as Qwen2-VL's"""


class Marks(Enum):
    """What of a text goes with an `<image>` in it."""

    eo1 = "eo1"
    """white space before it and one line's end behind it"""
    plain = "plain"
    """nothing, as in LLaMA-Factory"""


@dataclass(slots=True, kw_only=True)
class FilmConfig:
    """Which frames of a film are stored. Qwen2.5-VL's rule (qwen_vl_utils, smart_nframes)."""

    fps: float
    """frames a second"""
    min_frames: int
    """at least so many, if the film has them"""
    max_frames: int

    def __post_init__(self) -> None:
        check_positive("film.fps", self.fps)
        check(self.min_frames >= 2, "film.min_frames", self.min_frames, "must be at least 2, one step of time", 4)
        rule = f"must be at least min_frames={self.min_frames}"
        check(self.max_frames >= self.min_frames, "film.max_frames", self.max_frames, rule, self.min_frames)


@dataclass(slots=True, kw_only=True)
class CoordinatesConfig:
    """How boxes and points in texts are rewritten."""

    source: Coordinates
    target: Coordinates

    def __post_init__(self) -> None:
        ok = (self.source is Coordinates.unknown) == (self.target is Coordinates.unknown)
        rule = f"must both be unknown or neither, and coordinates.source={self.source.value}"
        check(ok, "coordinates.target", self.target.value, rule, self.source.value)


@dataclass(slots=True, kw_only=True)
class ConvertConversationsRun(RowsRun):
    """Files of rows become one folder of shards."""

    marks: Marks
    coordinates: CoordinatesConfig
    film: FilmConfig
