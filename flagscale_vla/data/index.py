"""Where each sample of a split lies and how many tokens it has, found in one pass over its shards and kept.

The same pass quarantines what cannot be used and gathers the statistics of each robot. What is found in a shard is kept
by itself, so that a new shard is the only one that is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flagscale_vla.data.faults import Fault
from flagscale_vla.data.gather import Gatherers, from_arrays, join, merge, to_arrays
from flagscale_vla.data.kept import kept_name
from flagscale_vla.data.place import Place
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.scan import Scan, find_arrays, find_scan, pack_arrays, scan_shard, scan_to_bytes
from flagscale_vla.data.store import Store, find_shards
from flagscale_vla.robots.embodiments import FILE_NAME as EMBODIMENTS_FILE
from flagscale_vla.robots.statistics import RobotStatistics

INDEX_VERSION = 4
BYTES_PER_PROCESS = 256 << 20
"""Starting a process costs about as much as reading this much."""
ARRAYS = ("shard", "start", "size", "lengths", "segments", "segment_starts", "cuts")


@dataclass(frozen=True, kw_only=True)
class Index:
    """All usable samples of one split, in the order of the shards."""

    store: Store
    """of the shards"""
    shards: tuple[str, ...]
    """file names of the tars"""
    digests: tuple[str, ...]
    """of each shard: blake2b of its bytes in hex"""
    keys: tuple[str, ...]
    """of each of the n samples, without the shard"""
    robots: tuple[str, ...]
    """of each sample; empty where it has no state and no action"""
    shard: NDArray[np.int32]
    """i32[n] index into `shards`"""
    start: NDArray[np.int64]
    """i64[n] first byte in the shard"""
    size: NDArray[np.int64]
    """i64[n] bytes"""
    lengths: NDArray[np.int64]
    """i64[n] tokens"""
    segments: NDArray[np.int32]
    """i32[m] tokens of each segment of all samples. A turn's own tokens are its first and its last segment's; what a
    sample has beyond its segments is the system's turn before them"""
    segment_starts: NDArray[np.int64]
    """i64[n + 1] where each sample's segments begin in `segments` and `cuts`"""
    cuts: NDArray[np.bool_]
    """bool[m] whether a segment begins a user's turn, so that a conversation may be cut before it"""
    faults: tuple[Fault, ...]
    """what was found unusable"""
    gatherers: Gatherers
    """what the statistics come from, so that those of several sources can be joined"""

    @cached_property
    def statistics(self) -> dict[str, RobotStatistics]:
        """Of each robot's states and actions."""
        return join([self.gatherers])

    def __len__(self) -> int:
        return len(self.keys)

    def place(self, sample: int) -> Place:
        """Where one sample lies; see `data.read.read_sample`."""
        return Place(self.shards[self.shard[sample]], int(self.start[sample]), int(self.size[sample]))

    def too_long(self, pack_length: int) -> tuple[Fault, ...]:
        """The samples that do not fit into a row, each as a fault that says by how much."""
        rule = f"data.pack_length={pack_length} is shorter"
        return tuple(
            Fault(
                shard=self.shards[self.shard[sample]],
                member=self.keys[sample],
                reason=f"has {self.lengths[sample]} tokens; {rule}",
            )
            for sample in np.flatnonzero(self.lengths > pack_length)
        )


def open_index(store: Store, split: str, recipe: Recipe, *, processes: int = 1) -> Index:
    """The index of a split: the kept one where shards, robots and layout are unchanged, else a new one, kept.

    Any number of processes may call this at once: one builds while the others wait for what it keeps.

    Args:
        store: of `SPLIT-*.tar` and `embodiments.json`.
        split: `train` or `heldout`.
        recipe: its layout gives lengths; its statistics are not used.
        processes: that may read shards at once, where there is enough to read.

    Raises:
        ValueError: there are no shards, or the index cannot be written.
        OSError: a shard cannot be read.
    """
    shards = find_shards(store, split)
    stamps, layout, kept = store.stamps(shards), index_layout(store, recipe), store.kept
    name = kept_name(split, stamps, layout, ".npz")
    if (index := find_index(store, name)) is not None:
        return index
    with kept.alone():
        if (index := find_index(store, name)) is not None:
            return index
        index = build_index(store, split, recipe, processes=processes)
        kept.write(name, index_to_bytes(index))
    return index


def index_layout(store: Store, recipe: Recipe) -> list[object]:
    """All that what is found in a shard depends on, besides the shard: of plain values."""
    robots = (store.find(EMBODIMENTS_FILE) or b"").decode()
    return [INDEX_VERSION, robots, *recipe.layout()]


def build_index(store: Store, split: str, recipe: Recipe, *, processes: int = 1) -> Index:
    """Read every shard of a split that was not read before. The result does not depend on `processes`.

    Raises:
        ValueError: there are no shards, or nothing can be kept.
        OSError: a shard cannot be read.
    """
    shards = find_shards(store, split)
    layout, kept = index_layout(store, recipe), store.kept
    stamps = store.stamps(shards)
    names = [kept_name(Path(shard).stem, [stamp], layout, ".npz") for shard, stamp in zip(shards, stamps, strict=True)]
    scans = {shard: scan for shard, name in zip(shards, names, strict=True) if (scan := find_scan(kept, name))}
    missing = [(shard, name) for shard, name in zip(shards, names, strict=True) if shard not in scans]
    done = _scan_shards(store, missing, recipe, processes)
    scans |= tqdm(done, desc=f"indexing {split}", total=len(missing), unit="tar", disable=not missing)
    return join_scans(store, shards, [scans[shard] for shard in shards])


def _scan_shards(
    store: Store, shards: Sequence[tuple[str, str]], recipe: Recipe, processes: int
) -> Iterator[tuple[str, Scan]]:
    enough = sum(store.size(shard) for shard, _ in shards) // BYTES_PER_PROCESS
    processes = max(1, min(processes, len(shards), enough))
    return map_jobs(partial(_scan_and_keep, store, recipe), shards, processes)


def _scan_and_keep(store: Store, recipe: Recipe, shard: tuple[str, str]) -> tuple[str, Scan]:
    name, kept_as = shard
    scan = scan_shard(store, name, recipe)
    store.kept.write(kept_as, scan_to_bytes(scan))
    return name, scan


def join_scans(store: Store, shards: Sequence[str], scans: Sequence[Scan]) -> Index:
    """The index of a split from what each of its shards holds."""
    places = np.concatenate([scan.places for scan in scans])
    counts = np.concatenate([scan.counts for scan in scans])
    return Index(
        store=store,
        shards=tuple(shards),
        digests=tuple(scan.digest for scan in scans),
        keys=tuple(key for scan in scans for key in scan.keys),
        robots=tuple(robot for scan in scans for robot in scan.robots),
        shard=np.repeat(np.arange(len(scans), dtype=np.int32), [len(scan.keys) for scan in scans]),
        start=places[:, 0],
        size=places[:, 1],
        lengths=places[:, 2],
        segments=np.concatenate([scan.segments for scan in scans]),
        segment_starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        cuts=np.concatenate([scan.cuts for scan in scans]),
        faults=tuple(fault for scan in scans for fault in scan.faults),
        gatherers=merge(scan.gatherers for scan in scans),
    )


def index_to_bytes(index: Index) -> bytes:
    """A `.npz` file."""
    places, gathered = to_arrays(index.gatherers)
    rest = {
        "shards": index.shards,
        "digests": index.digests,
        "keys": index.keys,
        "robots": index.robots,
        "faults": [asdict(fault) for fault in index.faults],
        "gatherers": places,
    }
    return pack_arrays(rest, gathered | {name: object.__getattribute__(index, name) for name in ARRAYS})


def find_index(store: Store, name: str) -> Index | None:
    """What `index_to_bytes` gave, if it is kept under this name and whole."""
    if (found := find_arrays(store.kept, name)) is None:
        return None
    rest, arrays = found
    return Index(
        store=store,
        shards=tuple(rest["shards"]),
        digests=tuple(rest["digests"]),
        keys=tuple(rest["keys"]),
        robots=tuple(rest["robots"]),
        faults=tuple(Fault(**fault) for fault in rest["faults"]),
        gatherers=from_arrays(rest["gatherers"], arrays),
        **{name: arrays[name] for name in ARRAYS},
    )
