"""Rows of one data-parallel rank, read ahead in exact order. Three integers say where any number of ranks go on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from flagscale_vla.data.faults import BadSampleError, Fault, Quarantine
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.mixture import MixtureEndError
from flagscale_vla.data.plan import Given, Plan, Position
from flagscale_vla.data.recipe import Draft, Seen
from flagscale_vla.data.rooms import READ_AHEAD, Laid, Room, Rooms
from flagscale_vla.data.sources import Order, label, read_item
from flagscale_vla.data.workers import fork_server, keep_memory
from flagscale_vla.records import PackedBatch, Sample

NO_MEMORY = torch.empty(0, dtype=torch.uint8)
NEVER = 1 << 62
"""Steps after which torchdata notes its own state."""
Made = TypeVar("Made")


class _Errand(NamedTuple):
    """What to read, and where to leave it."""

    orders: tuple[Order, ...]
    room: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delivery:
    """One row as read, and what was bad in it."""

    values: Mapping[str, Any]
    """by name the fields of its batch, without those that are left in the room"""
    room: int | None
    laid: Mapping[str, Laid] | None
    """the batch's tensors in the room; None if it would not take them"""
    reads: Mapping[str, int]
    """by shard"""
    faults: tuple[Fault, ...]

    def pin_memory(self) -> _Delivery:
        """The same in page-locked memory, from which a GPU copies while it computes; torch's loader calls this."""
        return replace(self, values=_each_tensor(self.values, Tensor.pin_memory))

    def __reduce__(self) -> tuple[Callable[..., _Delivery], tuple[Any, ...]]:
        """What is not in a room goes through the worker's pipe: torch would connect once for every tensor."""
        arrays = _each_tensor(self.values, Tensor.numpy)
        return _delivered, (arrays, self.room, self.laid, self.reads, self.faults)


def _each_tensor(values: Mapping[str, Any], change: Callable[[Tensor], Any]) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _delivered(
    values: Mapping[str, Any],
    room: int | None,
    laid: Mapping[str, Laid] | None,
    reads: Mapping[str, int],
    faults: tuple[Fault, ...],
) -> _Delivery:
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return _Delivery(values={**values, **tensors}, room=room, laid=laid, reads=reads, faults=faults)


class _Reader(Dataset[_Delivery]):
    """Reads one row; lives in the workers."""

    def __init__(self, feed: Feed, memory: Tensor) -> None:
        self.memory = memory
        # Not the feed itself: its indices may be large, and a worker is told where each sample lies.
        self.sources = [(source.name, source.index.store) for source in feed.sources]
        self.recipe, self.pack_length = feed.recipe, feed.pack_length
        self.seed, self.augment = feed.seed, feed.augment

    def __getitem__(self, errand: _Errand) -> _Delivery:
        orders = errand.orders
        room = Room(NO_MEMORY if errand.room is None else self.memory[errand.room])
        faults: dict[int, Fault] = {}
        batch = self._read(orders, room, faults)
        values = {field.name: batch.__getattribute__(field.name) for field in fields(batch)}
        laid = room.lay({name: value for name, value in values.items() if isinstance(value, Tensor)})
        left = {name: value for name, value in values.items() if laid is None or name not in laid}
        bad = tuple(faults[number] for number in sorted(faults))
        reads = Counter(self._shard(order) for order in orders)
        return _Delivery(values=left, room=errand.room, laid=laid, reads=reads, faults=bad)

    def _read(self, orders: Sequence[Order], room: Room, faults: dict[int, Fault]) -> PackedBatch:
        """The row without its bad samples, which become faults by their number in it."""
        for number, (_, store) in enumerate(self.sources):
            store.prepare(order.place for order in orders if order.source == number)

        def each(numbers: Iterable[int], make: Callable[[int], Made]) -> dict[int, Made]:
            return dict(self._each(orders, numbers, make, faults))

        begun = each(range(len(orders)), lambda number: self._begin(orders[number]))
        memory = room.cut({number: draft.nbytes for number, draft in begun.items()})
        seen = each(begun, lambda number: self.recipe.see(begun[number], memory[number]))
        samples = each(seen, lambda number: self._finish(orders[number], seen[number]))
        return self.recipe.pack(list(samples.values()), self.pack_length)

    def _each(
        self, orders: Sequence[Order], numbers: Iterable[int], make: Callable[[int], Made], faults: dict[int, Fault]
    ) -> Iterator[tuple[int, Made]]:
        """What is made of each order by its number; for a bad sample its fault is added to `faults`."""
        for number in numbers:
            try:
                made = make(number)
            except BadSampleError as error:
                faults[number] = self._fault(orders[number], error)
            else:
                yield number, made

    def _begin(self, order: Order) -> Draft:
        raw = read_item(*self.sources[order.source], order)
        return self.recipe.begin(raw, seed=self.seed, epoch=order.epoch, augment=self.augment)

    def _finish(self, order: Order, seen: Seen) -> Sample:
        sample = self.recipe.finish(seen)
        if sample.tokens.numel() > order.tokens:
            reason = f"has {sample.tokens.numel()} tokens, but had {order.tokens} when it was indexed"
            raise BadSampleError(sample.key, reason)
        return sample

    def _fault(self, order: Order, error: BadSampleError) -> Fault:
        shard, named = order.place.shard, self._shard(order)
        member = error.member.removeprefix(f"{named}/").removeprefix(f"{shard}/")
        return Fault(shard=named, member=member, reason=error.reason)

    def _shard(self, order: Order) -> str:
        """The shard of an order, as it is called over all sources."""
        return label(self.sources[order.source][0], order.place.shard)


class _Errands(Iterable[_Errand]):
    """The rows from `first` on, every `stride`-th."""

    def __init__(self, feed: Feed, plan: Plan, rooms: Rooms, first: int, stride: int) -> None:
        self.feed, self.plan, self.rooms, self.first, self.stride = feed, plan, rooms, first, stride

    def __iter__(self) -> Iterator[_Errand]:
        for number in count(self.first, self.stride):
            try:
                row = self.plan.row(number)
            except MixtureEndError:
                return
            yield _Errand(self.feed.orders(row), self.rooms.lend())


class Loader:
    """Gives this rank's rows in order.

    Rows are numbered over all ranks from the start of training; rank r of R reads `position.packs` + r, then every
    R-th. With M micro-batches, step s so reads rows [s*M*R, (s+1)*M*R), whatever M and R are: the position is the whole
    state.

    Args:
        feed: what is read.
        dp_rank: r, this rank among the data-parallel ranks.
        dp_size: R.
        position: where to go on.
        workers: processes that read ahead; 0 reads here, when asked.
        pin: whether rows are put in page-locked memory, for a GPU.
        quarantine: where bad samples are listed and counted, those of the index too.

    Raises:
        ValueError: no sample fits into a row, or too many are bad.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        dp_rank: int,
        dp_size: int,
        position: Position,
        workers: int,
        pin: bool,
        quarantine: Quarantine,
    ) -> None:
        quarantine.inspect(feed.sound, feed.faults, listed=dp_rank == 0)
        self.packs = position.packs
        """rows read, over all ranks"""
        self.samples = 0
        """samples this rank has given since it was made"""
        self.tokens = 0
        """tokens of those samples"""
        self._feed, self._quarantine, self._dp_size = feed, quarantine, dp_size
        self._plan = feed.plan(position)
        self._rooms, self._pin = Rooms(workers, feed.pack_length), pin
        errands = _Errands(feed, self._plan, self._rooms, position.packs + dp_rank, dp_size)
        reader = _Reader(feed, self._rooms.memory)
        self._deliveries: Iterator[_Delivery] | None = iter(read_ahead(reader, errands, workers, pin))

    @property
    def position(self) -> Position:
        """Where to go on, on any number of ranks."""
        return self._plan.position(self.packs)

    @property
    def quarantined(self) -> int:
        """Bad samples met by this rank: those of the index, and those it read since."""
        return self._quarantine.num_bad

    def given(self) -> dict[str, Given]:
        """What each source has given to all ranks since the start of training, bad samples among them."""
        return self._feed.named(self._plan.given(self.packs))

    def take(self, num_packs: int) -> list[PackedBatch]:
        """The next rows of this rank.

        Raises:
            ValueError: too many of the samples read are bad, a source has made all of its passes, or the loader was
                closed.
        """
        if self._deliveries is None:
            raise ValueError("the loader is closed")
        batches = []
        for delivery in islice(self._deliveries, num_packs):
            self._quarantine.count(delivery.reads, delivery.faults)
            batches.append(self._received(delivery))
            self.samples += len(batches[-1].keys)
            self.tokens += batches[-1].num_tokens
        if len(batches) < num_packs:
            raise ValueError(f"there are no more rows after {self.packs}: a source was given data.epochs times")
        self.packs += num_packs * self._dp_size
        return batches

    def _received(self, delivery: _Delivery) -> PackedBatch:
        tensors: dict[str, Any] = {}
        if delivery.room is not None and delivery.laid is not None:
            tensors = self._rooms.take(delivery.room, delivery.laid, self._pin)
        elif delivery.room is not None:
            self._rooms.free(delivery.room)
        return PackedBatch(**delivery.values, **tensors)

    def close(self) -> None:
        """End the workers; there is nothing to take afterwards."""
        self._deliveries = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_ahead(reader: _Reader, errands: _Errands, workers: int, pin: bool) -> StatefulDataLoader[_Delivery]:
    """Deliveries in the order of `errands`, read by `workers` processes, or here for none.

    The loader's own state is not used: it names each worker, and so could not be gone on from with another number.
    """
    keep_memory()
    ahead: dict[str, Any] = {"prefetch_factor": READ_AHEAD, "multiprocessing_context": fork_server()} if workers else {}
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that torch 2.13 deprecates; it does nothing here.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        return StatefulDataLoader(
            reader,
            batch_size=None,
            sampler=errands,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=keep_memory,
            snapshot_every_n_steps=NEVER,
            **ahead,
        )
