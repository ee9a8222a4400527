"""Settings of `convert_eo1`: a mixture in EO-1's YAML becomes one folder of shards per dataset."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive, check_seed
from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.config.convert_conversations import CoordinatesConfig, FilmConfig
from flagscale_vla.config.convert_rows import SystemTurn


@dataclass(slots=True, kw_only=True)
class ConvertEo1Run(ConvertRun):
    """Turning all datasets of a mixture into shards, each below `output`, and its weights into `output/mixture`."""

    mixture: str
    """EO-1's YAML with `mm_datasets` and `lerobot_datasets`"""
    base: str
    """folder that the YAML's relative paths begin at; empty for the current one, as EO-1 has it"""
    lerobot_home: str
    """folder of LeRobot datasets without a `root`, or with `root: HF_LEROBOT_HOME`"""
    horizon: int
    """future steps stored with each action; the longest chunk that can be trained"""
    max_seq_length: int
    """rows that say a larger `seq_length` are refused, as EO-1 leaves them out; 0 takes all"""
    seed: int
    """of random sampling"""
    system: SystemTurn
    coordinates: CoordinatesConfig
    film: FilmConfig

    def __post_init__(self) -> None:
        ConvertRun.__post_init__(self)
        check(bool(self.mixture), "mixture", self.mixture or "''", "must name EO-1's YAML", "data/data-demo.yaml")
        check_positive("horizon", self.horizon)
        rule = "must not be negative; 0 takes all rows"
        check(self.max_seq_length >= 0, "max_seq_length", self.max_seq_length, rule, 16384)
        check_seed(self.seed)
