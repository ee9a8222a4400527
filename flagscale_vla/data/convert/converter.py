"""What a converter is: it names its units of work, and turns each into samples and refusals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flagscale_vla.records import Segment
from flagscale_vla.robots.embodiments import Embodiment


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What one process turns into one shard."""

    name: str
    """unlike any other of the run, and the same at every start"""
    split: str
    """`train` or `heldout`"""
    payload: object
    """what the converter needs to know: plain values, tuples of them, or small frozen dataclasses. It is pickled, and
    its `repr` tells whether a later start means the same unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """One sample, as `ShardWriter.write` takes it."""

    key: str
    """letters, digits, `_` and `-`; unlike any other key of the split"""
    segments: tuple[Segment, ...]
    meta: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A row that cannot become a sample. Counts against `max_refused_share` and is listed in `refused.jsonl`."""

    place: str
    """file and line, or episode and frame"""
    reason: str
    """what comes before its first `: ` is the kind that is counted, as in `picture cannot be read: truncated`"""
    rows: int = 1
    """how many it takes along, as the frames of an episode whose file is missing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Rows that the settings leave out, as a stride does. They are counted and are no fault."""

    reason: str
    count: int


class Converter(Protocol):
    """Reads one kind of dataset. An instance is pickled to the processes, so it opens files where it needs them.

    Everything it yields depends on its settings and the unit alone, so that a unit that is converted again after a
    kill gives the same bytes.
    """

    def embodiments(self) -> Mapping[str, Embodiment]:
        """The robots whose states and actions the samples hold, by name."""
        ...

    def units(self) -> Sequence[Unit]:
        """All units of the run, in an order that does not change from one start to the next."""
        ...

    def samples(self, unit: Unit) -> Iterator[Converted | Refusal | Skipped]:
        """What a unit's rows become."""
        ...
