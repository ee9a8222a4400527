"""One shard looked through: where its samples lie, how long they are, what is bad; kept, so that it is done once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.conversation import Layout, is_assistants
from flagscale_vla.data.faults import BadSampleError, Fault
from flagscale_vla.data.gather import Gatherers, Rows, collect, from_arrays, gather, to_arrays
from flagscale_vla.data.kept import Kept
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.remote import PIECE
from flagscale_vla.data.store import Store
from flagscale_vla.data.tar import BrokenTarError, Buffer, group_members, walk_tar
from flagscale_vla.records import Action, RawSample, State

logger = logging.getLogger(__name__)

DIGEST_BYTES = 16
"""of a shard's digest"""


@dataclass(slots=True, kw_only=True)
class Scan:
    """What one shard holds."""

    keys: list[str] = field(default_factory=list)
    """of each of the n usable samples, without the shard"""
    robots: list[str] = field(default_factory=list)
    """of each sample; empty where it has no state and no action"""
    places: NDArray[np.int64]
    """i64[n, 3] first byte, bytes, tokens"""
    segments: NDArray[np.int32]
    """i32[all segments] tokens of each, sample after sample; see `Layout.segment_starts`"""
    counts: NDArray[np.int32]
    """i32[n] segments of each sample"""
    cuts: NDArray[np.bool_]
    """bool[all segments] whether a user's turn begins with it"""
    faults: list[Fault] = field(default_factory=list)
    digest: str
    """blake2b of the whole file in hex"""
    gatherers: Gatherers = field(default_factory=dict)
    """its part of the robots' statistics"""


def scan_shard(store: Store, shard: str, recipe: Recipe) -> Scan:
    """Every sample of one shard: measured, or found bad.

    Raises:
        OSError: the shard cannot be read.
    """
    rows: Rows = {}
    with store.whole(shard) as buffer:
        scanner = _Scanner(shard, buffer, recipe)
        for raw in scanner.samples():
            collect(raw, rows)
        return scanner.finish(gather(rows))


class _Digest:
    """blake2b of a buffer that is walked through, in pieces just left behind: no byte is fetched twice."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer, self.done = buffer, 0
        self.hash = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def advance(self, end: int) -> None:
        """Take in the whole pieces before `end`."""
        while self.done + PIECE <= end:
            self.hash.update(self.buffer[self.done : self.done + PIECE])
            self.done += PIECE

    def finish(self) -> str:
        """In hex, with the rest taken in."""
        self.advance(len(self.buffer))
        self.hash.update(self.buffer[self.done : len(self.buffer)])
        return self.hash.hexdigest()


def digest_shard(store: Store, shard: str) -> str:
    """blake2b of a shard's bytes in hex.

    Raises:
        OSError: the shard cannot be read.
    """
    with store.whole(shard) as buffer:
        return _Digest(buffer).finish()


class _Scanner:
    """Walks through one shard and notes each sample's place or fault."""

    def __init__(self, shard: str, buffer: Buffer, recipe: Recipe) -> None:
        self.shard, self.buffer, self.recipe = shard, buffer, recipe
        self.digest = _Digest(buffer)
        self.keys: list[str] = []
        self.robots: list[str] = []
        self.places: list[tuple[int, int, int]] = []
        self.lengths: list[NDArray[np.int64]] = []
        self.cuts: list[bool] = []
        self.faults: list[Fault] = []
        self.groups: Counter[str] = Counter()
        """groups of members of each key; more than one of a sample whose members do not lie together"""
        self.bad_keys: dict[Fault, str] = {}

    def samples(self) -> Iterator[RawSample]:
        """The good ones."""
        if len(self.buffer) == 0:
            self._refuse("(first member)", "the tar is empty: 0 bytes")
            return
        try:
            for group in group_members(walk_tar(self.buffer, whole=True)):
                self.digest.advance(group.start)
                self.groups[group.key] += 1
                try:
                    raw = parse_sample(self.shard, group, self.buffer)
                    layout = self.recipe.lay_out(raw)
                except BadSampleError as error:
                    self.faults.append(Fault.of(self.shard, error))
                    self.bad_keys[self.faults[-1]] = group.key
                    continue
                self.keys.append(group.key)
                self.places.append((group.start, group.end - group.start, len(layout.tokens)))
                self._note(raw, layout)
                yield raw
        except BrokenTarError as error:
            self._refuse(error.member, f"{error}; {len(self.buffer) - error.offset} bytes from there on are not read")

    def finish(self, gatherers: Gatherers) -> Scan:
        """All that was found."""
        lengths = np.concatenate(self.lengths) if self.lengths else np.empty(0, np.int64)
        return Scan(
            keys=self.keys,
            robots=self.robots,
            places=np.asarray(self.places, np.int64).reshape(-1, 3),
            segments=lengths.astype(np.int32),
            counts=np.asarray([len(part) for part in self.lengths], np.int32),
            cuts=np.asarray(self.cuts, np.bool_),
            faults=list(self._joined_faults()),
            digest=self.digest.finish(),
            gatherers=gatherers,
        )

    def _note(self, raw: RawSample, layout: Layout) -> None:
        self.robots.append(robot_of(raw))
        self.lengths.append(np.diff([*layout.segment_starts, len(layout.tokens)]))
        assistants = [True, *(is_assistants(segment) for segment in raw.segments)]
        self.cuts += [before and not own for before, own in pairwise(assistants)]

    def _joined_faults(self) -> Iterator[Fault]:
        """The faults, those of a sample whose members are scattered over the shard as one."""
        told = set()
        for fault in self.faults:
            key = self.bad_keys.get(fault, "")
            if self.groups[key] < 2:
                yield fault
            elif key not in told:
                told.add(key)
                reason = f"its members do not lie together but in {self.groups[key]} places"
                yield Fault(shard=self.shard, member=key, reason=reason)

    def _refuse(self, member: str, reason: str) -> None:
        self.faults.append(Fault(shard=self.shard, member=member, reason=reason))


def robot_of(raw: RawSample) -> str:
    """The robot whose states or actions a sample holds; empty for none."""
    robots = {segment.robot for segment in raw.segments if isinstance(segment, State | Action)}
    return robots.pop() if robots else ""


def scan_to_bytes(scan: Scan) -> bytes:
    """A `.npz` file."""
    places, arrays = to_arrays(scan.gatherers)
    rest = {
        "keys": scan.keys,
        "robots": scan.robots,
        "faults": [asdict(fault) for fault in scan.faults],
        "digest": scan.digest,
        "gatherers": places,
    }
    arrays |= {"places": scan.places, "segments": scan.segments, "counts": scan.counts, "cuts": scan.cuts}
    return pack_arrays(rest, arrays)


def find_scan(kept: Kept, name: str) -> Scan | None:
    """What `scan_to_bytes` gave, if it is kept under this name and whole."""
    if (found := find_arrays(kept, name)) is None:
        return None
    rest, arrays = found
    return Scan(
        keys=rest["keys"],
        robots=rest["robots"],
        faults=[Fault(**fault) for fault in rest["faults"]],
        digest=rest["digest"],
        gatherers=from_arrays(rest["gatherers"], arrays),
        **{name: arrays[name] for name in ("places", "segments", "counts", "cuts")},
    )


def pack_arrays(rest: object, arrays: dict[str, NDArray[Any]]) -> bytes:
    """A `.npz` file of arrays and of what JSON can hold."""
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(rest, ensure_ascii=False).encode(), np.uint8)
    np.savez(buffer, rest=text, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def load_arrays(path: Path) -> tuple[Any, dict[str, NDArray[Any]]]:
    """What `pack_arrays` packed.

    Raises:
        ValueError: the file lost its bytes, as after a loss of power.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return json.loads(arrays.pop("rest").tobytes()), arrays
    except (ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def find_arrays(kept: Kept, name: str) -> tuple[Any, dict[str, NDArray[Any]]] | None:
    """What `pack_arrays` packed, if it is kept under this name and sound."""
    path = kept.find(name)
    if path is None:
        return None
    try:
        return load_arrays(path)
    except ValueError as error:
        logger.warning("%s and is made again", error)
        return None
