"""One unit of a conversion: its rows become a shard, and what happened to them a log beside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flagscale_vla.data.convert.converter import Converted, Converter, Refusal, Skipped, Unit
from flagscale_vla.data.shards import ShardWriter, shard_path
from flagscale_vla.records import Action
from flagscale_vla.reports.outputs import replace_text

LOGS = "units"
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A unit and the number of its shard, which is its place among the units of its split."""

    unit: Unit
    shard: int


@dataclass(slots=True, kw_only=True)
class UnitLog:
    """What became of a unit's rows."""

    unit: str
    payload: str
    """hash of the unit's payload"""
    split: str
    shard: int
    samples: int = 0
    steps: int = 0
    """actions in the samples: moments at which a robot acts"""
    refused: list[Refusal] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def convert_unit(converter: Converter, folder: Path, task: Task) -> UnitLog:
    """Convert one unit and put its shard into `folder`, whole, and then its log. Without a sample there is no shard."""
    begin = time.perf_counter()
    unit = task.unit
    # A folder of its own: a run that was killed may still have a worker that is writing the same shard.
    private = folder / UNFINISHED / f"{os.getpid()}-{unit.split}-{task.shard}"
    with ShardWriter(private, unit.split, max_bytes=2**62, first=task.shard) as writer:
        log = write_samples(converter, task, writer)
    target = shard_path(folder, unit.split, task.shard)
    if log.samples:
        os.replace(shard_path(private, unit.split, task.shard), target)
    else:
        target.unlink(missing_ok=True)
    shutil.rmtree(private, ignore_errors=True)
    log.seconds = round(time.perf_counter() - begin, 3)
    save_log(folder, log)
    return log


def write_samples(converter: Converter, task: Task, writer: ShardWriter) -> UnitLog:
    """Write a unit's samples. One that a shard cannot hold, as for a NaN, is refused like the converter's own."""
    log = new_log(task)
    skipped: Counter[str] = Counter()
    for row in converter.samples(task.unit):
        match row:
            case Refusal():
                log.refused.append(row)
            case Skipped(reason=reason, count=count):
                skipped[reason] += count
            case Converted(key=key, segments=segments, meta=meta):
                try:
                    writer.write(key, segments, meta)
                except ValueError as error:
                    log.refused.append(refusal_of(key, error))
                    continue
                log.samples += 1
                log.steps += sum(isinstance(segment, Action) for segment in segments)
    log.skipped = dict(sorted(skipped.items()))
    return log


def refusal_of(key: str, error: ValueError) -> Refusal:
    """The writer's refusal; its message begins with the sample's key and the member."""
    place, found, reason = str(error).partition(": ")
    return Refusal(place=place, reason=reason) if found else Refusal(place=key, reason=place)


def new_log(task: Task) -> UnitLog:
    """An empty log."""
    return UnitLog(
        unit=task.unit.name, payload=hash_payload(task.unit.payload), split=task.unit.split, shard=task.shard
    )


def hash_payload(payload: object) -> str:
    """Short hash of what a payload says."""
    return hashlib.blake2b(repr(payload).encode(), digest_size=8).hexdigest()


def log_path(folder: Path, task: Task) -> Path:
    """Where a unit's log lies; a unit is done when it is there."""
    return folder / LOGS / f"{task.unit.split}-{task.shard:06d}.json"


def save_log(folder: Path, log: UnitLog) -> None:
    """Write a unit's log in one step."""
    path = folder / LOGS / f"{log.split}-{log.shard:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(asdict(log), ensure_ascii=False))


def load_log(folder: Path, task: Task) -> UnitLog:
    """The log of a unit that is done.

    Raises:
        ValueError: it is another unit's, so the folder holds another dataset, or it is damaged.
    """
    path = log_path(folder, task)
    try:
        log = log_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it to convert its unit again") from error
    expected = new_log(task)
    if (log.unit, log.payload) != (expected.unit, expected.payload):
        raise ValueError(
            f"{path} was written for unit {log.unit!r} ({log.payload}), which is now {expected.unit!r} "
            f"({expected.payload}): the dataset has changed since. Give another output= to convert it afresh"
        )
    return log


def log_from_json(entry: Mapping[str, object]) -> UnitLog:
    """The inverse of `asdict`.

    Raises:
        TypeError: a field is missing or unknown.
    """
    log = UnitLog(**entry)  # type: ignore[arg-type]
    log.refused = [Refusal(**refusal) for refusal in log.refused]  # type: ignore[arg-type]
    return log
