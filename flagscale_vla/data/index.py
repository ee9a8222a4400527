"""Where each sample of a folder lies and how many tokens it has, found in one pass and kept beside the shards.

The same pass quarantines what cannot be used and gathers the statistics of each robot.
"""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flagscale_vla.data.faults import BadSampleError, Fault
from flagscale_vla.data.gather import Gatherers, Rows, collect, gather, join
from flagscale_vla.data.kept import find_shards, keep, kept_path
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.tar import BrokenTarError, Buffer, group_members, walk_tar
from flagscale_vla.data.workers import fork_server
from flagscale_vla.records import Action, RawSample, State
from flagscale_vla.robots.embodiments import FILE_NAME as EMBODIMENTS_FILE
from flagscale_vla.robots.statistics import RobotStatistics, statistics_from_json, statistics_to_json

INDEX_VERSION = 1
BYTES_PER_PROCESS = 256 << 20
"""Starting a process costs about as much as reading this much."""
CHUNKS_PER_PROCESS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All usable samples of one split, in the order of the shards."""

    folder: Path
    shards: tuple[str, ...]
    """file names of the tars"""
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
    faults: tuple[Fault, ...]
    """what was found unusable"""
    statistics: dict[str, RobotStatistics]
    """of each robot's states and actions"""

    def __len__(self) -> int:
        return len(self.keys)

    def place(self, sample: int) -> tuple[Path, int, int]:
        """(shard, first byte, bytes) of one sample; see `data.read.read_sample`."""
        shard = self.folder / self.shards[self.shard[sample]]
        return shard, int(self.start[sample]), int(self.size[sample])

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


@dataclass(slots=True, kw_only=True)
class _ShardScan:
    """What one shard holds."""

    keys: list[str] = field(default_factory=list)
    robots: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    """(first byte, bytes, tokens)"""
    faults: list[Fault] = field(default_factory=list)
    gatherers: Gatherers = field(default_factory=dict)


def open_index(folder: Path, split: str, recipe: Recipe, *, processes: int = 1) -> Index:
    """The index of a split: the kept one where shards, robots and layout are unchanged, else a new one, kept.

    Only one process should build; others call this after it is done, and find it.

    Args:
        folder: of `SPLIT-*.tar` and `embodiments.json`.
        split: `train` or `heldout`.
        recipe: its layout gives lengths; its statistics are not used.
        processes: that may read shards at once, where there is enough to read.

    Raises:
        ValueError: there are no shards, or the index cannot be written.
    """
    embodiments = folder / EMBODIMENTS_FILE
    robots = embodiments.read_text(encoding="utf-8") if embodiments.is_file() else ""
    path = kept_path(folder, split, [INDEX_VERSION, robots, *recipe.layout()], ".npz")
    if path.is_file():
        return load_index(path, folder)
    index = build_index(folder, split, recipe, processes=processes)
    save_index(index, path)
    return index


def build_index(folder: Path, split: str, recipe: Recipe, *, processes: int = 1) -> Index:
    """Read every shard of a split once. The result does not depend on `processes`."""
    shards = find_shards(folder, split)
    enough = sum(path.stat().st_size for path in shards) // BYTES_PER_PROCESS
    processes = max(1, min(processes, len(shards), enough))
    scans = list(tqdm(_scan_shards(shards, recipe, processes), desc=f"indexing {split}", total=len(shards), unit="tar"))
    return _join_scans(folder, shards, scans)


def _scan_shards(shards: list[Path], recipe: Recipe, processes: int) -> Iterator[_ShardScan]:
    if processes == 1:
        yield from map(partial(scan_shard, recipe=recipe), shards)
        return
    with ProcessPoolExecutor(processes, mp_context=fork_server()) as pool:
        # The recipe, tokenizer and all, is sent once per chunk of shards.
        chunk = -(-len(shards) // (CHUNKS_PER_PROCESS * processes))
        yield from pool.map(partial(scan_shard, recipe=recipe), shards, chunksize=chunk)


def scan_shard(path: Path, recipe: Recipe) -> _ShardScan:
    """Every sample of one shard: measured, or found bad."""
    scan = _ShardScan()
    rows: Rows = {}
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            scan.faults.append(Fault(shard=path.name, member="(first member)", reason="the tar is empty: 0 bytes"))
            return scan
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            for raw in _scan_samples(path.name, buffer, recipe, scan):
                collect(raw, rows)
    scan.gatherers = gather(rows)
    return scan


def _scan_samples(shard: str, buffer: Buffer, recipe: Recipe, scan: _ShardScan) -> Iterator[RawSample]:
    """Note each sample's place or fault in `scan`, and give the good ones."""
    try:
        for group in group_members(walk_tar(buffer, whole=True)):
            try:
                raw = parse_sample(shard, group, buffer)
                length = recipe.length(raw)
            except BadSampleError as error:
                scan.faults.append(Fault.of(shard, error))
                continue
            scan.keys.append(group.key)
            scan.robots.append(robot_of(raw))
            scan.places.append((group.start, group.end - group.start, length))
            yield raw
    except BrokenTarError as error:
        reason = f"{error}; {len(buffer) - error.offset} bytes from there on are not read"
        scan.faults.append(Fault(shard=shard, member=error.member, reason=reason))


def robot_of(raw: RawSample) -> str:
    """The robot whose states or actions a sample holds; empty for none."""
    robots = {segment.robot for segment in raw.segments if isinstance(segment, State | Action)}
    return robots.pop() if robots else ""


def _join_scans(folder: Path, shards: list[Path], scans: list[_ShardScan]) -> Index:
    places = np.asarray([place for scan in scans for place in scan.places], np.int64).reshape(-1, 3)
    numbers = [number for number, scan in enumerate(scans) for _ in scan.keys]
    return Index(
        folder=folder,
        shards=tuple(path.name for path in shards),
        keys=tuple(key for scan in scans for key in scan.keys),
        robots=tuple(robot for scan in scans for robot in scan.robots),
        shard=np.asarray(numbers, np.int32),
        start=places[:, 0],
        size=places[:, 1],
        lengths=places[:, 2],
        faults=tuple(fault for scan in scans for fault in scan.faults),
        statistics=join(scan.gatherers for scan in scans),
    )


def save_index(index: Index, path: Path) -> None:
    """Write an index in one step.

    Raises:
        ValueError: the folder cannot be written to.
    """
    rest = {
        "shards": index.shards,
        "keys": index.keys,
        "robots": index.robots,
        "faults": [asdict(fault) for fault in index.faults],
        "statistics": statistics_to_json(index.statistics),
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(rest, ensure_ascii=False).encode(), np.uint8)
    np.savez_compressed(buffer, rest=text, shard=index.shard, start=index.start, size=index.size, lengths=index.lengths)
    keep(path, buffer.getvalue())


def load_index(path: Path, folder: Path) -> Index:
    """What `save_index` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        rest = json.loads(arrays["rest"].tobytes())
        places = {name: arrays[name] for name in ("shard", "start", "size", "lengths")}
    return Index(
        folder=folder,
        shards=tuple(rest["shards"]),
        keys=tuple(rest["keys"]),
        robots=tuple(rest["robots"]),
        faults=tuple(Fault(**fault) for fault in rest["faults"]),
        statistics=statistics_from_json(rest["statistics"]),
        **places,
    )
