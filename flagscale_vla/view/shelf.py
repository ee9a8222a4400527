"""One source of a mixture opened for looking: its shards, episodes and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from flagscale_vla.data.feed import ALONE
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.sources import Source
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import RawSample, Sample
from flagscale_vla.robots.statistics import Statistics
from flagscale_vla.view.episodes import Seen, group_episodes, list_episodes, play, stored_pictures
from flagscale_vla.view.samples import Pixels, describe, seen_pictures

Picture = TypeVar("Picture")

KEPT_SHARDS = 4
SHOWN_FAULTS = 200


class Shelf:
    """A source's training split, read as a run with this recipe reads it.

    Args:
        source: where samples lie.
        recipe: how they are made.
        seed: of noise and augmentation.
    """

    def __init__(self, source: Source, recipe: Recipe, seed: int) -> None:
        self.source, self.index, self.recipe, self.seed = source, source.index, recipe, seed
        self._episodes = lru_cache(maxsize=KEPT_SHARDS)(self._read_episodes)

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.source.name or ALONE

    def overview(self) -> dict[str, object]:
        """Counts of everything, robots, and what was found unusable."""
        index = self.index
        return {
            "name": self.name,
            "folder": index.store.url,
            "samples": len(index),
            "tokens": int(index.lengths.sum()),
            "longest": int(index.lengths.max(initial=0)),
            "shards": [self._shard_row(number) for number in range(len(index.shards))],
            "robots": [self._robot_row(name, count) for name, count in sorted(Counter(index.robots).items())],
            "num_faults": len(index.faults),
            "faults": [str(fault) for fault in index.faults[:SHOWN_FAULTS]],
        }

    def _shard_row(self, number: int) -> dict[str, object]:
        own = self.index.shard == number
        tokens = int(self.index.lengths[own].sum())
        return {"name": self.index.shards[number], "samples": int(own.sum()), "tokens": tokens}

    def _robot_row(self, name: str, count: int) -> dict[str, object]:
        robot, known = self.recipe.embodiments.get(name), self.index.statistics.get(name)
        return {
            "name": name or "(no robot)",
            "samples": count,
            "fps": robot.fps if robot else None,
            "cameras": list(robot.cameras) if robot else [],
            "state": _dims(robot.state, known.state) if robot and known else [],
            "action": _dims(robot.action, known.action) if robot and known else [],
        }

    def episodes(self, shard: str) -> list[dict[str, object]]:
        """The episodes of a shard.

        Raises:
            LookupError: there is no such shard.
        """
        return list_episodes(seen for members in self._episodes(shard).values() for seen in members)

    def episode(self, shard: str, name: str) -> dict[str, object]:
        """One episode, for the player.

        Raises:
            LookupError: there is no such shard or episode.
        """
        episodes = self._episodes(shard)
        if name not in episodes:
            raise LookupError(f"{shard} has no episode {name!r}")
        return play(episodes[name], self.recipe.embodiments)

    def _read_episodes(self, shard: str) -> dict[str, list[Seen]]:
        if shard not in self.index.shards:
            raise LookupError(f"there is no shard {shard!r}")
        own = np.flatnonzero(self.index.shard == self.index.shards.index(shard))
        return group_episodes(self.seen(number) for number in own.tolist())

    def seen(self, number: int) -> Seen:
        """A sample as it lies in its shard.

        Raises:
            LookupError: there is no such sample.
            BadSampleError: it has become unreadable since it was indexed.
        """
        if not 0 <= number < len(self.index):
            raise LookupError(f"there is no sample {number}; the last is {len(self.index) - 1}")
        place = self.index.place(number)
        content = self.index.store.read(place.shard, place.start, place.size)
        group = next(group_members(walk_tar(content, whole=False)))
        shard = self.source.label(place.shard)
        raw = parse_sample(shard, group, content)
        return Seen(number=number, raw=raw, meta=parse_meta(shard, group, content))

    def sample(self, number: int, epoch: int) -> tuple[RawSample, Sample]:
        """A sample as the shard has it, and as the model gets it in an epoch.

        Raises:
            LookupError: there is no such sample.
            BadSampleError: it cannot be used.
        """
        raw = self.seen(number).raw
        return raw, self.recipe.sample(raw, seed=self.seed, epoch=epoch, augment=True)

    def described(self, number: int, epoch: int) -> dict[str, object]:
        """What the page shows of a sample."""
        raw, sample = self.sample(number, epoch)
        return {"source": self.name, "number": number, "epoch": epoch} | describe(raw, sample, self.recipe)

    def stored_picture(self, number: int, place: int) -> bytes:
        """The bytes, JPEG or PNG, of a sample's picture number `place`.

        Raises:
            LookupError: it has no such picture.
        """
        return _pick(stored_pictures(self.seen(number).raw), place, f"sample {number}")[1]

    def seen_picture(self, number: int, epoch: int, place: int) -> Pixels:
        """Picture number `place` of a sample, resized and moved, as the model gets it.

        Raises:
            LookupError: it has no such picture.
        """
        return _pick(seen_pictures(self.sample(number, epoch)[1]), place, f"sample {number}")


def _dims(names: Sequence[str], statistics: Statistics) -> list[dict[str, object]]:
    columns = zip(names, statistics.min, statistics.q01, statistics.mean, statistics.q99, statistics.max, strict=True)
    return [dict(zip(("name", "min", "q01", "mean", "q99", "max"), column, strict=True)) for column in columns]


def _pick(pictures: Sequence[Picture], place: int, owner: str) -> Picture:
    if not 0 <= place < len(pictures):
        raise LookupError(f"{owner} has {len(pictures)} pictures, none is number {place}")
    return pictures[place]
