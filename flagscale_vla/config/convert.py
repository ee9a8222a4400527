"""Settings that every converter has: what becomes of pictures, how rows are shared out, how many may be refused."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive, check_share


@dataclass(slots=True, kw_only=True)
class ConvertRun:
    """Turning another program's dataset into shards. A converter's own root adds what it needs.

    A root that has checks of its own calls `ConvertRun.__post_init__(self)` first.
    """

    output: str
    processes: int
    samples_per_shard: int
    """about how many; an episode is never cut"""
    heldout_share: float
    """of episodes or rows, chosen by a hash of their names, so that a dataset that grows keeps its choice"""
    max_refused_share: float
    """stop once more than this share of rows is refused; the first 100 rows count as 100"""
    image_pixels: int
    """longest side of a stored picture, its proportions kept; smaller ones stay as they are; 0 keeps all"""
    jpeg_quality: int
    """of pictures that are written anew"""

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for shards", "runs/shards")
        for name in ("processes", "samples_per_shard"):
            check_positive(name, self.__getattribute__(name))
        for name in ("heldout_share", "max_refused_share"):
            check_share(name, self.__getattribute__(name))
        check(self.image_pixels >= 0, "image_pixels", self.image_pixels, "must not be negative; 0 keeps pictures", 224)
        check(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "must lie in [1, 100]", 92)
