"""Where one sample lies."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Bytes of a shard that hold one sample; a tuple, which reaches a worker several times as fast as a dataclass."""

    shard: str
    """file name of the tar"""
    start: int
    """first byte"""
    size: int
    """bytes"""
