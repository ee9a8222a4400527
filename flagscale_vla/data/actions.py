"""Every chunk of actions of a split, found in one pass over the shards and kept beside them, memory-mapped.

.index/SPLIT-DIGEST.chunks/
    chunks.json      robots in the order of their numbers, faults, statistics
    0.values         f32[n, H, A0] of robot 0, in its own units
    0.valid          bool[n, H], false past an episode's end
    0.starts         f32[n, S0], the robot's state before each; NaN where a sample tells none
    0.keys           a line for each: shard, sample and segment
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flagscale_vla.data.faults import BadSampleError, Fault
from flagscale_vla.data.gather import Gatherers, Rows, collect, gather, join
from flagscale_vla.data.kept import kept_name, partial_path
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.starts import chunks_with_starts
from flagscale_vla.data.store import Store, find_shards
from flagscale_vla.data.tar import BrokenTarError, Buffer, group_members, walk_tar
from flagscale_vla.data.validation import check_segments
from flagscale_vla.records import RawSample
from flagscale_vla.robots.embodiments import FILE_NAME, Embodiment, read_embodiments
from flagscale_vla.robots.statistics import RobotStatistics, hash_rank, statistics_from_json, statistics_to_json

CHUNKS_VERSION = 4
ABOUT = "chunks.json"
PARTS = ("values", "valid", "starts", "keys")

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RobotChunks:
    """Chunks of one robot."""

    robot: str
    values: Floats
    """[n, H, A0] in the robot's own units"""
    valid: Bools
    """[n, H], false past an episode's end; at least one true in each"""
    starts: Floats
    """[n, S0] the robot's state before each chunk; NaN where the sample tells none"""
    keys: tuple[str, ...]
    """of each: shard, sample and segment"""

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def ranks(self) -> NDArray[np.uint64]:
        """u64[n], by which a share of the chunks is chosen: a hash of the key."""
        return np.asarray([hash_rank(key) for key in self.keys], np.uint64)

    def take(self, rows: Places) -> RobotChunks:
        """Some of the chunks, in memory, in the order of `rows`."""
        keys = tuple(self.keys[row] for row in rows)
        return RobotChunks(
            robot=self.robot,
            values=self.values[rows],
            valid=self.valid[rows],
            starts=self.starts[rows],
            keys=keys,
        )


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """The chunks of one split, and what was found on the way to them."""

    robots: dict[str, RobotChunks]
    """by name, in alphabetical order; none without chunks"""
    statistics: dict[str, RobotStatistics]
    """of every robot with a usable sample, as the index of pretraining has them"""
    sound: dict[str, int]
    """usable samples of each shard, with and without chunks"""
    faults: tuple[Fault, ...]
    """what was quarantined, unusable chunks among it"""
    num_invalid: int
    """of the faults, samples that could be read and whose numbers cannot be used"""

    def __len__(self) -> int:
        return sum(len(chunks) for chunks in self.robots.values())

    def choose(self, max_chunks: int) -> Chunks:
        """The chunks whose keys have the smallest hashes, `max_chunks` at most: a uniform choice that depends on no
        order. Statistics and counts stay those of the whole split."""
        if len(self) <= max_chunks:
            return self
        ranks = np.concatenate([chunks.ranks for chunks in self.robots.values()])
        limit = np.partition(ranks, max_chunks)[max_chunks]
        chosen = {name: chunks.take(np.flatnonzero(chunks.ranks < limit)) for name, chunks in self.robots.items()}
        return self._with({name: chunks for name, chunks in chosen.items() if len(chunks)})

    def only(self, robots: Iterable[str]) -> Chunks:
        """The chunks of some robots."""
        return self._with({name: self.robots[name] for name in sorted(robots) if name in self.robots})

    def _with(self, robots: dict[str, RobotChunks]) -> Chunks:
        return Chunks(
            robots=robots,
            statistics=self.statistics,
            sound=self.sound,
            faults=self.faults,
            num_invalid=self.num_invalid,
        )

    def take(self, rows: Places) -> dict[str, RobotChunks]:
        """Chunks by their place in the whole split, robot after robot; a robot of which none is asked for is left out.

        Args:
            rows: i64[n] in [0, len(self)).
        """
        taken, begin = {}, 0
        for name, chunks in self.robots.items():
            own = rows[(rows >= begin) & (rows < begin + len(chunks))] - begin
            if len(own):
                taken[name] = chunks.take(own)
            begin += len(chunks)
        return taken

    def digest(self) -> str:
        """sha256 in hex of all that is trained on: keys, values, starts and statistics; not of where the shards lie."""
        digest = sha256(json.dumps(statistics_to_json(self.statistics)).encode())
        for name, chunks in self.robots.items():
            digest.update(json.dumps([name, chunks.keys]).encode())
            digest.update(chunks.values.tobytes())
            digest.update(chunks.valid.tobytes())
            digest.update(chunks.starts.tobytes())
        return digest.hexdigest()


def open_chunks(store: Store, split: str, horizon: int) -> Chunks:
    """The chunks of a split: the kept ones where shards, robots and horizon are unchanged, else found anew and kept.

    Any number of processes may call this at once: one finds them while the others wait.

    Args:
        store: of `SPLIT-*.tar` and `embodiments.json`.
        split: `train` or `heldout`.
        horizon: H, the first steps of each stored chunk.

    Raises:
        ValueError: there are no shards or no `embodiments.json`, or nothing can be kept.
        OSError: a shard cannot be read.
    """
    shards = find_shards(store, split)
    described = store.find(FILE_NAME)
    if described is None:
        raise ValueError(f"{store.url}/{FILE_NAME} is missing: it tells what the robots' numbers mean")
    embodiments = read_embodiments(described, f"{store.url}/{FILE_NAME}")
    layout = [CHUNKS_VERSION, horizon, described.decode()]
    name = kept_name(split, store.stamps(shards), layout, ".chunks")
    if path := store.kept.find(name):
        return load_chunks(path, horizon)
    with store.kept.alone():
        return load_chunks(store.kept.find(name) or keep_chunks(store, name, split, embodiments, horizon), horizon)


def keep_chunks(store: Store, name: str, split: str, embodiments: Mapping[str, Embodiment], horizon: int) -> Path:
    """Read every shard of a split once and keep its chunks in a folder that appears whole; its path.

    Raises:
        ValueError: nothing can be kept.
        OSError: a shard cannot be read, or the disk is full.
    """
    path = store.kept.folder() / name
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        with _Keeper(store, partial, embodiments, horizon) as keeper:
            for shard in tqdm(find_shards(store, split), desc=f"chunks of {split}", unit="tar"):
                keeper.add_shard(shard)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


@dataclass(slots=True, kw_only=True)
class _Found:
    """What one pass has found so far."""

    counts: dict[str, int] = field(default_factory=dict)
    """chunks by robot"""
    gathered: list[Gatherers] = field(default_factory=list)
    """by shard"""
    sound: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    num_invalid: int = 0


class _Keeper:
    """Writes chunks as they are found; memory does not grow with their number."""

    def __init__(self, store: Store, folder: Path, embodiments: Mapping[str, Embodiment], horizon: int) -> None:
        self.store, self.folder, self.embodiments, self.horizon = store, folder, embodiments, horizon
        self.found = _Found()
        self._files: dict[str, dict[str, BinaryIO]] = {}
        self._open = ExitStack()

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        if kind is None:
            found = self.found
            about = {
                "robots": [
                    {
                        "name": name,
                        "chunks": found.counts[name],
                        "width": len(self.embodiments[name].action),
                        "states": len(self.embodiments[name].state),
                    }
                    for name in self._files
                ],
                "sound": found.sound,
                "faults": [asdict(fault) for fault in found.faults],
                "num_invalid": found.num_invalid,
                "statistics": statistics_to_json(join(found.gathered)),
            }
            (self.folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    def add_shard(self, shard: str) -> None:
        """Keep the chunks of one shard, and note what in it cannot be used."""
        rows: Rows = {}
        with self.store.whole(shard) as buffer:
            for raw in self._samples(shard, buffer):
                collect(raw, rows)
                self._add_sample(raw)
        self.found.gathered.append(gather(rows))

    def _samples(self, shard: str, buffer: Buffer) -> Iterator[RawSample]:
        """The usable samples of one shard."""
        if len(buffer) == 0:
            self._refuse(shard, "(first member)", "the tar is empty: 0 bytes")
            return
        try:
            for group in group_members(walk_tar(buffer, whole=True)):
                try:
                    raw = parse_sample(shard, group, buffer)
                except BadSampleError as error:
                    self.found.faults.append(Fault.of(shard, error))
                    continue
                if self._is_usable(shard, raw):
                    yield raw
        except BrokenTarError as error:
            unread = len(buffer) - error.offset
            self._refuse(shard, error.member, f"{error}; {unread} bytes from there on are not read")

    def _is_usable(self, shard: str, raw: RawSample) -> bool:
        try:
            check_segments(raw, self.embodiments, horizon=1)
            self._check_chunks(raw)
        except BadSampleError as error:
            self.found.faults.append(Fault.of(shard, error))
            self.found.num_invalid += 1
            return False
        self.found.sound[shard] += 1
        return True

    def _check_chunks(self, raw: RawSample) -> None:
        for action, _ in chunks_with_starts(raw.segments):
            steps = len(action.values)
            if steps < self.horizon:
                reason = f"its action has {steps} steps; horizon={self.horizon} needs at least as many"
                raise BadSampleError(raw.key, reason)
            if not action.valid[: self.horizon].any():
                raise BadSampleError(raw.key, f"none of its first {self.horizon} action steps is inside the episode")

    def _add_sample(self, raw: RawSample) -> None:
        for number, (action, start) in enumerate(chunks_with_starts(raw.segments)):
            files = self._files.get(action.robot) or self._begin(action.robot)
            files["values"].write(action.values[: self.horizon].tobytes())
            files["valid"].write(action.valid[: self.horizon].tobytes())
            files["starts"].write(self._start(action.robot, start).tobytes())
            files["keys"].write(f"{raw.key}/{number}\n".encode())
            self.found.counts[action.robot] = self.found.counts.get(action.robot, 0) + 1

    def _start(self, robot: str, start: Floats | None) -> Floats:
        return np.full(len(self.embodiments[robot].state), np.nan, np.float32) if start is None else start

    def _begin(self, robot: str) -> dict[str, BinaryIO]:
        number = len(self._files)
        self._files[robot] = {
            part: self._open.enter_context((self.folder / f"{number}.{part}").open("wb")) for part in PARTS
        }
        return self._files[robot]

    def _refuse(self, shard: str, member: str, reason: str) -> None:
        self.found.faults.append(Fault(shard=shard, member=member, reason=reason))


def load_chunks(path: Path, horizon: int) -> Chunks:
    """What `keep_chunks` kept, numbers memory-mapped."""
    about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    robots = {entry["name"]: _map_robot(path, number, entry, horizon) for number, entry in enumerate(about["robots"])}
    return Chunks(
        robots=dict(sorted(robots.items())),
        statistics=statistics_from_json(about["statistics"]),
        sound=about["sound"],
        faults=tuple(Fault(**fault) for fault in about["faults"]),
        num_invalid=about["num_invalid"],
    )


def _map_robot(path: Path, number: int, entry: Mapping[str, Any], horizon: int) -> RobotChunks:
    count, width, states = entry["chunks"], entry["width"], entry["states"]
    return RobotChunks(
        robot=entry["name"],
        values=np.memmap(path / f"{number}.values", np.float32, "r", shape=(count, horizon, width)),
        valid=np.memmap(path / f"{number}.valid", np.bool_, "r", shape=(count, horizon)),
        starts=np.memmap(path / f"{number}.starts", np.float32, "r", shape=(count, states)),
        keys=tuple((path / f"{number}.keys").read_text(encoding="utf-8").splitlines()),
    )
