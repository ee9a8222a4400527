"""What a training run reads, opened for looking: its sources, and the rows that it makes of them."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from flagscale_vla.data.feed import ALONE, Feed
from flagscale_vla.data.mixture import MixtureEndError
from flagscale_vla.data.plan import Position
from flagscale_vla.data.sources import Order, read_item
from flagscale_vla.records import Sample
from flagscale_vla.view.samples import num_learnt
from flagscale_vla.view.shelf import Shelf


class Library:
    """A training run's data.

    Args:
        feed: what the run reads.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        shelves = [Shelf(source, feed.recipe, feed.seed) for source in feed.sources]
        self.shelves = {shelf.name: shelf for shelf in shelves}
        self._plan = feed.plan(Position())

    def shelf(self, source: str) -> Shelf:
        """One source.

        Raises:
            LookupError: there is none of that name.
        """
        if source not in self.shelves:
            raise LookupError(f"there is no source {source!r}; there are {sorted(self.shelves)}")
        return self.shelves[source]

    def overview(self) -> list[dict[str, object]]:
        """Every source in counts."""
        return [shelf.overview() for shelf in self.shelves.values()]

    def mixture(self, packs: int) -> list[dict[str, object]]:
        """What each source gives in the first rows of training.

        Raises:
            LookupError: there are fewer rows.
        """
        try:
            given = self._plan.given(packs)
        except MixtureEndError as error:
            raise LookupError(f"there is no pack {packs}: {error}") from error
        total = max(sum(part.tokens for part in given), 1)
        return [
            {"source": name, "samples": part.samples, "tokens": part.tokens, "share of tokens": part.tokens / total}
            | {"passes": part.passes, "of samples": len(self.shelf(name).index)}
            for name, part in self.feed.named(given).items()
        ]

    def pack(self, number: int) -> dict[str, object]:
        """A row of training: which samples lie in it, and where.

        Raises:
            LookupError: there is no such row.
            BadSampleError: one of its samples has become unreadable.
        """
        if number < 0:
            raise LookupError(f"there is no pack {number}; the first is 0")
        try:
            row = self._plan.row(number)
        except MixtureEndError as error:
            raise LookupError(f"there is no pack {number}: {error}") from error
        rows = zip(self.feed.orders(row), row.item.tolist(), strict=True)
        samples = [self._member(order, item) for order, item in rows]
        ends = accumulate(sample["tokens"] for sample in samples)
        placed = [sample | {"start": end - sample["tokens"]} for sample, end in zip(samples, ends, strict=True)]
        used = sum(sample["tokens"] for sample in samples)
        return {"length": self.feed.pack_length, "num_tokens": used, "samples": placed}

    def _member(self, order: Order, item: int) -> dict[str, Any]:
        """What a row's list says of one of its samples."""
        sample = self._make(order)
        return {
            "source": self.feed.sources[order.source].name or ALONE,
            "number": int(self.feed.items[order.source].samples[item]),
            "epoch": order.epoch,
            "key": sample.key,
            "tokens": sample.tokens.numel(),
            "learnt": num_learnt(sample),
        }

    def _make(self, order: Order) -> Sample:
        """A sample, or a piece of one, as the row has it."""
        source = self.feed.sources[order.source]
        raw = read_item(source.name, source.index.store, order)
        return self.feed.recipe.sample(raw, seed=self.feed.seed, epoch=order.epoch, augment=self.feed.augment)
