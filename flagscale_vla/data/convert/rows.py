"""Rows of a JSON list or of JSON lines: where they lie, which of them are wanted, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from flagscale_vla.config.checks import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlace:
    """One row of a file."""

    number: int
    """its line in JSON lines, its place in a JSON list; from 1"""
    start: int
    """byte the line begins at; 0 in a JSON list"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one row holds."""

    place: str
    """`FILE:NUMBER`, for whoever has to look at it"""
    number: int
    content: dict[str, Any] | None
    """None where it cannot be read"""
    reason: str
    """why it cannot be read; empty where it can"""


def find_rows(path: Path) -> list[RowPlace]:
    """Where the rows of a file lie; empty lines are none.

    Raises:
        ValueError: it is missing, of another kind than `.json` and `.jsonl`, or not a JSON list.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path}: rows are read from .json and .jsonl files")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.suffix == ".json":
        return [RowPlace(number=number, start=0) for number in range(1, len(load_list(path)) + 1)]
    places, start = [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                places.append(RowPlace(number=number, start=start))
            start += len(line)
    return places


def load_list(path: Path) -> list[Any]:
    """A JSON file whose content is a list; the last one is kept in memory while the file stays as it is.

    Raises:
        ValueError: it is no JSON, or no list.
    """
    state = path.stat()
    return _load_list(path, (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=1)
def _load_list(path: Path, state: tuple[int, ...]) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path}: must hold a list of rows, not {type(content).__name__}")
    return content


def read_rows(path: Path, places: Sequence[RowPlace]) -> Iterator[Entry]:
    """The rows at these places; one that is no JSON object says so."""
    if path.suffix == ".json":
        content = load_list(path)
        for place in places:
            yield as_row(path, place.number, content[place.number - 1])
        return
    with path.open("rb") as file:
        for place in places:
            file.seek(place.start)
            try:
                yield as_row(path, place.number, json.loads(file.readline()))
            except (ValueError, RecursionError) as error:
                yield Entry(
                    place=f"{path}:{place.number}", number=place.number, content=None, reason=f"not JSON: {error}"
                )


def as_row(path: Path, number: int, content: object) -> Entry:
    """One row, or why it is none."""
    place = f"{path}:{number}"
    if not isinstance(content, dict):
        reason = f"not an object: the row is {type(content).__name__}"
        return Entry(place=place, number=number, content=None, reason=reason)
    return Entry(place=place, number=number, content=content, reason="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which rows of a file are taken: EO-1's `all`, `first:K`, `end:K` and `random:K`, K a number or `P%`."""

    kind: str
    number: float
    percent: bool

    def count(self, total: int) -> int:
        """Rows that are taken of `total`; a percentage is rounded up."""
        if self.kind == "all":
            return total
        # Of 1,000 rows 7% are 70, which floats make 70.00000000000001.
        wanted = -int(-round(self.number * total, 6) // 100) if self.percent else int(self.number)
        return min(total, wanted)

    def choose(self, total: int, seed: int) -> list[int]:
        """Indices of the rows that are taken, in order; a random choice is a function of the seed."""
        count = self.count(total)
        if self.kind == "end":
            return list(range(total - count, total))
        if self.kind == "random":
            return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())
        return list(range(count))


def parse_sampling(key: str, text: str) -> Sampling:
    """A sampling strategy from its spelling.

    Raises:
        ConfigError: it is none of the four, or its number is not one.
    """
    kind, colon, number = text.partition(":")
    if text == "all":
        return Sampling(kind="all", number=0, percent=False)
    percent = number.endswith("%")
    try:
        amount = float(number[:-1]) if percent else float(int(number))
    except ValueError:
        amount = -1.0
    if kind not in ("first", "end", "random") or not colon or not 0 <= amount < float("inf"):
        rule = "must be all, first:K, end:K or random:K, with K a number of rows or a percentage"
        raise ConfigError(f"{key}={text}: {rule}. This would pass: {key}=random:10%")
    return Sampling(kind=kind, number=amount, percent=percent)
