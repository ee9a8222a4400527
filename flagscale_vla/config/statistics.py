"""The root of the settings that gather and show the statistics of a folder of shards."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive
from flagscale_vla.config.data import CacheConfig


@dataclass(slots=True, kw_only=True)
class StatisticsSource:
    """Which shards."""

    shards: str
    """folder of `train-*.tar`, or the URL of one"""
    cache: CacheConfig

    def __post_init__(self) -> None:
        check(bool(self.shards), "data.shards", "''", "must name a folder of tar shards", "runs/demo")


@dataclass(slots=True, kw_only=True)
class StatisticsRun:
    """Gathering what the numbers of each robot are like in the training shards of one source."""

    output: str
    data: StatisticsSource
    processes: int

    def __post_init__(self) -> None:
        check(bool(self.output), "output", "''", "must name a folder for the report", "runs/statistics")
        check_positive("processes", self.processes)
