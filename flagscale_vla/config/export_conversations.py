"""Settings of `export_conversations`: shards become rows that other programs train on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive, check_share


class RowForm(Enum):
    """How turns are spelled."""

    messages = "messages"
    """`role` and `content`: ShareGPT as LLaMA-Factory, ms-swift and Embodied-Reasoner have it"""
    conversations = "conversations"
    """`from` and `value`: LLaVA's and EO-1's"""


@dataclass(slots=True, kw_only=True)
class ExportConversationsRun:
    """Writing shards as JSON lines and picture files."""

    output: str
    shards: str
    """folder of shards without states and actions"""
    form: RowForm
    processes: int
    max_refused_share: float
    """stop once more than this share of samples is refused; the first 100 count as 100"""

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for rows", "runs/rows")
        check(bool(self.shards), "shards", self.shards or "''", "must name a folder of shards", "runs/convert_reasoner")
        check_positive("processes", self.processes)
        check_share("max_refused_share", self.max_refused_share)
