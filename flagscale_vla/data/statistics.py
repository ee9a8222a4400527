"""Job `statistics`: what the states and actions of each robot are like in the training shards of one source.

`statistics.json` lies beside the shards and in the job's output. By robot it has `state` and `action` as training
scales by them, and two kinds of differences, `delta` and `step` (see `data.gather`); and it names the shards that it
was gathered from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flagscale_vla.config.provenance import git_hash, package_versions
from flagscale_vla.config.statistics import StatisticsRun
from flagscale_vla.data.faults import BadSampleError, Fault
from flagscale_vla.data.gather import (
    Gatherers,
    Rows,
    collect,
    collect_differences,
    from_arrays,
    gather,
    merge,
    names_of,
    to_arrays,
)
from flagscale_vla.data.kept import kept_name
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.prepare import open_embodiments
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.scan import digest_shard, load_arrays, pack_arrays
from flagscale_vla.data.statistics_report import write_page
from flagscale_vla.data.store import Store, find_shards, open_store
from flagscale_vla.data.tar import BrokenTarError, Buffer, group_members, walk_tar
from flagscale_vla.data.validation import check_segments
from flagscale_vla.records import RawSample
from flagscale_vla.reports.outputs import replace_text, settings_yaml, write_summary
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.sketch import BUCKETS, WORST_ERROR
from flagscale_vla.robots.statistics import (
    Gatherer,
    RobotStatistics,
    Statistics,
    constant_dims,
    no_statistics,
    statistics_from_entry,
)

logger = logging.getLogger(__name__)

FILE_NAME = "statistics.json"
STATISTICS_VERSION = 1
KINDS = ("state", "action", "delta", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPart:
    """What one shard adds."""

    name: str
    stamp: str
    digest: str
    """blake2b of its bytes in hex"""
    samples: int
    """usable ones"""
    faults: tuple[Fault, ...]
    gatherers: Gatherers


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatistics:
    """What a source's shards hold together."""

    embodiments: Mapping[str, Embodiment]
    parts: tuple[ShardPart, ...]
    """in the order of the shards"""
    gatherers: Gatherers

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every (robot, kind) there is, robots in alphabetical order."""
        robots = sorted({robot for robot, _ in self.gatherers})
        return [(robot, kind) for robot in robots for kind in KINDS if (robot, kind) in self.gatherers]


def run(run: StatisticsRun) -> None:
    """Gather, write `statistics.json` and a page, and name the dims that hardly change.

    Raises:
        ValueError: there are no shards, or nothing can be kept.
        OSError: a shard cannot be read, or the output cannot be written.
    """
    store = open_store(run.data.shards, run.data.cache)
    found = gather_source(store, "train", run.processes)
    folder = Path(run.output)
    folder.mkdir(parents=True, exist_ok=True)
    content = to_json(store, found)
    written = write_statistics(store, folder, content)
    write_summary(folder, count(found), device="cpu")
    page = write_page(folder, content, found.gatherers, settings_yaml(run))
    for robot, kind, names in constants(found):
        logger.warning(
            "robot %s: %s hardly changes in %s: it is only shifted, not scaled", robot, kind, ", ".join(names)
        )
    logger.info("statistics: %s", ", ".join(str(path.resolve()) for path in written))
    logger.info("report: %s", page.resolve())


def gather_source(store: Store, split: str, processes: int) -> SourceStatistics:
    """Every shard of a split, each read once and kept; the result does not depend on `processes`.

    Raises:
        ValueError: there are no shards, or nothing can be kept.
        OSError: a shard cannot be read.
    """
    shards = find_shards(store, split)
    stamped = list(zip(shards, store.stamps(shards), strict=True))
    embodiments = open_embodiments(store)
    work = partial(gather_shard, store, embodiments)
    bar = tqdm(map_jobs(work, stamped, min(processes, len(stamped))), desc=f"statistics of {split}", total=len(shards))
    parts = {part.name: part for part in bar}
    ordered = tuple(parts[shard] for shard in shards)
    whole = merge(part.gatherers for part in ordered)
    return SourceStatistics(embodiments=embodiments, parts=ordered, gatherers=whole)


def gather_shard(store: Store, embodiments: Mapping[str, Embodiment], stamped: tuple[str, str]) -> ShardPart:
    """One shard's part: the kept one, or found anew and kept."""
    shard, stamp = stamped
    robots = {name: asdict(robot) for name, robot in sorted(embodiments.items())}
    name = kept_name(Path(shard).stem, [stamp], [STATISTICS_VERSION, robots], ".statistics.npz")
    if path := store.kept.find(name):
        return load_part(path)
    rows: Rows = {}
    faults: list[Fault] = []
    samples = 0
    with store.whole(shard) as buffer:
        for raw in usable_samples(shard, buffer, embodiments, faults):
            collect(raw, rows)
            collect_differences(raw, embodiments, rows)
            samples += 1
    part = ShardPart(
        name=shard,
        stamp=stamp,
        digest=digest_shard(store, shard),
        samples=samples,
        faults=tuple(faults),
        gatherers=gather(rows),
    )
    store.kept.write(name, part_to_bytes(part))
    return part


def usable_samples(
    shard: str, buffer: Buffer, embodiments: Mapping[str, Embodiment], faults: list[Fault]
) -> Iterator[RawSample]:
    """The samples whose numbers can be used; the others are noted in `faults`. Pictures are not looked at."""
    try:
        for group in group_members(walk_tar(buffer, whole=True)):
            try:
                raw = parse_sample(shard, group, buffer)
                check_segments(raw, embodiments, horizon=1)
            except BadSampleError as error:
                faults.append(Fault.of(shard, error))
                continue
            yield raw
    except BrokenTarError as error:
        faults.append(Fault(shard=shard, member=error.member, reason=str(error)))


def part_to_bytes(part: ShardPart) -> bytes:
    """A `.npz` file."""
    places, arrays = to_arrays(part.gatherers)
    rest = {
        "name": part.name,
        "stamp": part.stamp,
        "digest": part.digest,
        "samples": part.samples,
        "faults": [asdict(fault) for fault in part.faults],
        "gatherers": places,
    }
    return pack_arrays(rest, arrays)


def load_part(path: Path) -> ShardPart:
    """What `part_to_bytes` gave."""
    rest, arrays = load_arrays(path)
    gatherers = from_arrays(rest.pop("gatherers"), arrays)
    faults = tuple(Fault(**fault) for fault in rest.pop("faults"))
    return ShardPart(**rest, faults=faults, gatherers=gatherers)


def to_json(store: Store, found: SourceStatistics) -> dict[str, Any]:
    """What `statistics.json` holds."""
    robots: dict[str, dict[str, object]] = {}
    for robot, kind in found.places:
        gatherer, names = found.gatherers[robot, kind], names_of(found.embodiments[robot], kind)
        robots.setdefault(robot, {})[kind] = describe(gatherer, names)
    return {
        "version": STATISTICS_VERSION,
        "source": store.url,
        "split": "train",
        "samples": sum(part.samples for part in found.parts),
        "faults": sum(len(part.faults) for part in found.parts),
        "shards": [
            {"name": part.name, "stamp": part.stamp, "blake2b": part.digest, "samples": part.samples}
            for part in found.parts
        ],
        "sketch": {"buckets": BUCKETS, "largest_relative_error": WORST_ERROR},
        "made_with": package_versions() | {"git": git_hash()},
        "robots": robots,
    }


def read_statistics(content: bytes, where: str) -> dict[str, RobotStatistics]:
    """The states and actions in what `statistics.json` holds, by robot; `where` it lies is for messages.

    Raises:
        ValueError: it is no such file, or of another version.
    """
    try:
        found = json.loads(content)
        if found["version"] != STATISTICS_VERSION:
            raise ValueError(f"it has version {found['version']}; this code reads {STATISTICS_VERSION}")
        return {robot: read_kinds(kinds) for robot, kinds in found["robots"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where} cannot be read ({error}): make it anew with the job `statistics`") from error


def read_kinds(kinds: Mapping[str, Mapping[str, Any]]) -> RobotStatistics:
    """The two kinds that training scales, without what is told beside their numbers."""
    names = [part.name for part in fields(Statistics)]

    def read(kind: str) -> Statistics:
        return statistics_from_entry({name: kinds[kind][name] for name in names}) if kind in kinds else no_statistics()

    return RobotStatistics(state=read("state"), action=read("action"))


def describe(gatherer: Gatherer, names: Sequence[str]) -> dict[str, object]:
    """Statistics of one vector with the names of its dims, and of those that hardly change."""
    statistics = gatherer.finish()
    median, _ = gatherer.quantiles(0.5)
    return (
        {"names": list(names)}
        | asdict(statistics)
        | {"median": median.tolist(), "constant": list(constant_dims(statistics, names))}
    )


def constants(found: SourceStatistics) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(robot, kind, names) of the dims that hardly change."""
    for robot, kind in found.places:
        names = names_of(found.embodiments[robot], kind)
        still = constant_dims(found.gatherers[robot, kind].finish(), names)
        if still:
            yield robot, kind, still


def count(found: SourceStatistics) -> dict[str, object]:
    """The figures of `summary.json`."""
    return {
        "shards": len(found.parts),
        "samples": sum(part.samples for part in found.parts),
        "faults": [asdict(fault) for part in found.parts for fault in part.faults],
        "rows": {f"{robot}/{kind}": found.gatherers[robot, kind].count for robot, kind in found.places},
        "constant": {f"{robot}/{kind}": list(names) for robot, kind, names in constants(found)},
    }


def write_statistics(store: Store, folder: Path, content: Mapping[str, object]) -> list[Path]:
    """Write the file into `folder` and, where that is possible, beside the shards; the paths."""
    text = json.dumps(content, indent=1) + "\n"
    paths = [folder / FILE_NAME]
    replace_text(paths[0], text)
    if "://" not in store.url:
        beside = Path(store.url) / FILE_NAME
        try:
            replace_text(beside, text)
            paths.append(beside)
        except OSError as error:
            logger.warning("%s cannot be written beside the shards: %s", beside, error)
    return paths
