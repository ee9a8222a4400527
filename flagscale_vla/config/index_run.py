"""The root of the settings that build an index of shards ahead of training."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive
from flagscale_vla.config.data import ActionConfig, DataConfig


@dataclass(slots=True, kw_only=True)
class IndexRun:
    """Looking through shards: where samples lie, how long they are, what is bad. Training with equal settings of data,
    action and vocabulary then begins at once."""

    output: str
    data: DataConfig
    action: ActionConfig
    width: int
    """`model.flow.width` of the training"""
    vocab: int
    """`model.language.vocab` of the training; only a tokenizer that is fitted here depends on it"""
    processes: int
    verify: bool
    """read every shard again and compare its bytes with the digest that was kept when it was indexed"""

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/index")
        for name in ("width", "vocab", "processes"):
            check_positive(name, self.__getattribute__(name))
