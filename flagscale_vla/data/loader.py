"""Packs of one data-parallel rank, read ahead in exact order; a run resumes from one integer on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from flagscale_vla.data.faults import BadSampleError, Fault, Quarantine
from flagscale_vla.data.index import Index
from flagscale_vla.data.plan import Plan
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.store import Place
from flagscale_vla.data.workers import fork_server
from flagscale_vla.records import PackedBatch, Sample

READ_AHEAD = 4
"""Packs each worker has ready or in work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The endless sequence of packs that all ranks of a run share."""

    index: Index
    """of the training shards"""
    recipe: Recipe
    pack_length: int
    """S, tokens of a row"""
    seed: int
    """of order, noise and augmentation"""
    augment: bool
    """whether pictures are moved"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """One pack to read: everything a worker needs to know."""

    epoch: int
    places: tuple[Place, ...]
    """of each sample"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delivery:
    """One pack as read, and what was bad in it."""

    batch: PackedBatch
    reads: int
    faults: tuple[Fault, ...]


class _Reader(Dataset[_Delivery]):
    """Reads one pack; lives in the workers."""

    def __init__(self, source: Source) -> None:
        # Not the source itself: its index may be large, and a worker is told where each sample lies.
        self.store, self.recipe, self.pack_length = source.index.store, source.recipe, source.pack_length
        self.seed, self.augment = source.seed, source.augment

    def __getitem__(self, order: _Order) -> _Delivery:
        samples: list[Sample] = []
        faults: list[Fault] = []
        for place in order.places:
            try:
                raw = read_sample(self.store, place)
                samples.append(self.recipe.sample(raw, seed=self.seed, epoch=order.epoch, augment=self.augment))
            except BadSampleError as error:
                faults.append(Fault.of(place.shard, error))
        batch = self.recipe.pack(samples, self.pack_length)
        return _Delivery(batch=batch, reads=len(order.places), faults=tuple(faults))


class _Orders(Iterable[_Order]):
    """The packs from `first` on, every `stride`-th."""

    def __init__(self, source: Source, first: int, stride: int) -> None:
        index = source.index
        self.usable = np.flatnonzero(index.lengths <= source.pack_length)
        if len(self.usable) == 0:
            faults = (*index.faults, *index.too_long(source.pack_length))
            raise ValueError(f"{index.store.url} holds no usable sample: {'; '.join(map(str, faults[:3]))}")
        self.index, self.first, self.stride = index, first, stride
        self.plan = Plan(index.lengths[self.usable], source.pack_length, source.seed)

    def __iter__(self) -> Iterator[_Order]:
        for number in count(self.first, self.stride):
            epoch, chosen = self.plan.pack(number)
            places = tuple(self.index.place(sample) for sample in self.usable[chosen].tolist())
            yield _Order(epoch=epoch, places=places)


class Loader:
    """Gives this rank's packs in order.

    Packs are numbered over all ranks from the start of training; rank r of R reads `packs` + r, then every R-th. With M
    micro-batches, step s so reads packs [s*M*R, (s+1)*M*R), whatever M and R are: `packs` is the whole state.

    Args:
        source: what is read.
        dp_rank: r, this rank among the data-parallel ranks.
        dp_size: R.
        packs: already read, over all ranks; where to go on.
        workers: processes that read ahead; 0 reads here, when asked.
        quarantine: where bad samples are listed and counted, those of the index too.

    Raises:
        ValueError: no sample fits into a row, or too many are bad.
    """

    def __init__(
        self, source: Source, *, dp_rank: int, dp_size: int, packs: int, workers: int, quarantine: Quarantine
    ) -> None:
        index = source.index
        faults = (*index.faults, *index.too_long(source.pack_length))
        quarantine.inspect(len(index), faults, listed=dp_rank == 0)
        self.packs = packs
        self.samples = 0
        """samples this rank has given since it was made"""
        self.tokens = 0
        """tokens of those samples"""
        self._quarantine, self._dp_size = quarantine, dp_size
        orders = _Orders(source, packs + dp_rank, dp_size)
        self._deliveries: Iterator[_Delivery] | None = iter(read_ahead(_Reader(source), orders, workers))

    @property
    def quarantined(self) -> int:
        """Bad samples met by this rank: those of the index, and those it read since."""
        return self._quarantine.num_bad

    def take(self, num_packs: int) -> list[PackedBatch]:
        """The next packs of this rank.

        Raises:
            ValueError: too many of the samples read are bad, or the loader was closed.
        """
        if self._deliveries is None:
            raise ValueError("the loader is closed")
        batches = []
        for delivery in islice(self._deliveries, num_packs):
            self._quarantine.count(delivery.reads, delivery.faults)
            batches.append(delivery.batch)
            self.samples += len(delivery.batch.keys)
            self.tokens += delivery.batch.num_tokens
        self.packs += num_packs * self._dp_size
        return batches

    def close(self) -> None:
        """End the workers; there is nothing to take afterwards."""
        self._deliveries = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_ahead(reader: _Reader, orders: _Orders, workers: int) -> StatefulDataLoader[_Delivery]:
    """Deliveries in the order of `orders`, read by `workers` processes, or here for none."""
    ahead = {"prefetch_factor": READ_AHEAD, "multiprocessing_context": fork_server()} if workers else {}
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that torch 2.13 deprecates; it does nothing here.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        return StatefulDataLoader(reader, batch_size=None, sampler=orders, num_workers=workers, **ahead)
