"""Where one sample lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a shard that hold one sample."""

    shard: str
    """file name of the tar"""
    start: int
    """first byte"""
    size: int
    """bytes"""
