"""What all ranks of a run read: sources, the order of their samples, and how samples are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flagscale_vla.config.checks import check
from flagscale_vla.config.mixture import OrderConfig, TooLong, Weigh
from flagscale_vla.data.faults import Fault
from flagscale_vla.data.mixture import Mixture, Stage
from flagscale_vla.data.plan import Given, Plan, Position, Row
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.sources import Items, Order, Source, find_faults, open_items

ALONE = "shards"
"""What a source without a name is called in counts."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The sequence of rows that all ranks of a run share."""

    sources: tuple[Source, ...]
    """one or more, their names rising"""
    recipe: Recipe
    order: OrderConfig
    pack_length: int
    """S, tokens of a row"""
    seed: int
    """of order, noise and augmentation"""
    augment: bool
    """whether pictures are changed"""

    @cached_property
    def items(self) -> tuple[Items, ...]:
        """What of each source is packed."""
        split = self.order.too_long is TooLong.split
        return tuple(open_items(source, self.pack_length, split=split) for source in self.sources)

    @cached_property
    def faults(self) -> tuple[Fault, ...]:
        """What was found unusable before anything is trained on."""
        found = tuple(fault for source in self.sources for fault in find_faults(source))
        return found + tuple(fault for items in self.items for fault in items.faults)

    @cached_property
    def sound(self) -> dict[str, int]:
        """Samples of each shard that are sound, the ones that are too long among them."""
        return {shard: number for source in self.sources for shard, number in source.sound().items()}

    @cached_property
    def mixture(self) -> Mixture:
        """The stream of all samples.

        Raises:
            ValueError: a source has no usable sample.
        """
        for source, items in zip(self.sources, self.items, strict=True):
            if not len(items.samples):
                shown = "; ".join(map(str, (*find_faults(source), *items.faults)[:3]))
                raise ValueError(f"{source.index.store.url} holds no usable sample: {shown}")
        return Mixture(
            [items.lengths for items in self.items],
            self._stages(),
            seed=self.seed,
            era=self.order.era,
            by_tokens=self.order.weigh is Weigh.tokens,
            epochs=self.order.epochs,
        )

    def _stages(self) -> list[Stage]:
        if not self.order.mixture:
            return [Stage(samples=math.inf, weights=(1.0,))]
        return [
            Stage(samples=samples or math.inf, weights=tuple(weights[source.name] for source in self.sources))
            for samples, weights in self.order.weights_by_stage()
        ]

    def plan(self, position: Position) -> Plan:
        """The rows from `position`'s era on."""
        return Plan(self.mixture, self.pack_length, self.order.pool, position)

    def orders(self, row: Row) -> tuple[Order, ...]:
        """What to read for a row."""
        triples = zip(row.source.tolist(), row.item.tolist(), row.epoch.tolist(), strict=True)
        return tuple(self._order(*triple) for triple in triples)

    def _order(self, source: int, item: int, epoch: int) -> Order:
        items = self.items[source]
        place = self.sources[source].index.place(int(items.samples[item]))
        tokens = int(items.lengths[item])
        return Order(source=source, place=place, epoch=epoch, piece=items.piece(item), tokens=tokens)

    def check_epochs(self, steps: int, rows: int) -> None:
        """Refuse a run of so many steps, of so many rows each, that would go through a source too often.

        Rows are counted as full, so that there are enough samples whatever the share of padding.

        Raises:
            ConfigError: naming the number of steps that there are samples for.
        """
        tokens = self.mixture.num_tokens
        most = steps if math.isinf(tokens) else int(tokens // (rows * self.pack_length))
        rule = (
            f"data.epochs={self.order.epochs} ends the data after {tokens:.0f} tokens, and so many steps of {rows} "
            f"rows of {self.pack_length} tokens may need more"
        )
        check(steps <= most, "steps", steps, rule, most or "fewer global_packs, a shorter data.pack_length")

    def named(self, given: Sequence[Given]) -> dict[str, Given]:
        """What each source has given, by its name."""
        return {source.name or ALONE: part for source, part in zip(self.sources, given, strict=True)}
