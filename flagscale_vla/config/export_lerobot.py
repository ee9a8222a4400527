"""Settings of `export_lerobot`: shards become a LeRobot dataset."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive, check_share
from flagscale_vla.config.statistics import StatisticsSource


class PictureColumn(Enum):
    """Where pictures go."""

    image = "image"
    """into the parquet files, the very bytes of the shard"""
    video = "video"
    """into mp4 files, which are smaller and not exact"""


class VideoCodec(Enum):
    """How mp4 files are encoded."""

    h264 = "h264"
    av1 = "av1"
    """what LeRobot itself writes"""


@dataclass(slots=True, kw_only=True)
class VideoConfig:
    """How mp4 files are encoded."""

    codec: VideoCodec
    crf: int
    """constant rate factor: lower is better and larger"""
    gop: int
    """frames from one key frame to the next; random access decodes so many"""

    def __post_init__(self) -> None:
        most = 51 if self.codec is VideoCodec.h264 else 63
        check(0 <= self.crf <= most, "video.crf", self.crf, f"must lie in [0, {most}] for {self.codec.value}", 23)
        check_positive("video.gop", self.gop)


@dataclass(slots=True, kw_only=True)
class ExportLeRobotRun:
    """Writing the episodes of one robot as a LeRobot dataset of version 3.0."""

    output: str
    data: StatisticsSource
    """the shards"""
    splits: list[str]
    """whose episodes; they follow each other in this order, and `info.json` says which are which"""
    robot: str
    """may be empty where the shards hold only one"""
    pictures: PictureColumn
    video: VideoConfig
    frames_per_file: int
    """about how many; an episode is never cut"""
    max_refused_share: float
    """stop once more than this share of samples is refused; the first 100 count as 100"""
    processes: int

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder", "runs/export_lerobot")
        known = [split for split in dict.fromkeys(self.splits) if split in ("train", "heldout")]
        rule = "must hold train, heldout or both"
        ok = bool(known) and known == list(self.splits)
        check(ok, "splits", f"[{','.join(self.splits)}]", rule, f"[{','.join(known or ['train'])}]")
        for name in ("frames_per_file", "processes"):
            check_positive(name, self.__getattribute__(name))
        check_share("max_refused_share", self.max_refused_share)
