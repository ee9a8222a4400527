"""Settings of every converter of files of rows, each of which becomes a sample."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_seed
from flagscale_vla.config.convert import ConvertRun


class SystemTurn(Enum):
    """What becomes of a system's turn in a row, as every run has a system prompt of its own."""

    aside = "aside"
    """kept in the sample's JSON as `system`, where no model sees it"""
    prepend = "prepend"
    """put before the first question, and kept aside too"""
    refuse = "refuse"


@dataclass(slots=True, kw_only=True)
class RowsRun(ConvertRun):
    """Files of rows become one folder of shards."""

    files: list[str]
    """.json or .jsonl"""
    base: str
    """folder that the rows' pictures and films are named from; empty for each file's own"""
    name: str
    """the source's, in keys and in each sample's JSON"""
    sampling: str
    """of each file: all, first:K, end:K or random:K, with K a number of rows or P%"""
    seed: int
    """of a random sampling"""
    system: SystemTurn

    def __post_init__(self) -> None:
        ConvertRun.__post_init__(self)
        check(bool(self.files), "files", self.files, "must name files of rows", "[data/rows.jsonl]")
        check_name(self.name)
        check_seed(self.seed)


def check_name(name: str) -> None:
    """Refuse a source's name that cannot be part of a key.

    Raises:
        ConfigError: it has other letters.
    """
    ok = bool(name) and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name)
    check(ok, "name", name or "''", "must be letters, digits, '_' and '-'", "vqa")
