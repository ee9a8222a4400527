"""Every rule that shards must hold, over all samples of a folder; `tools/check_shards.py` prints what is found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flagscale_vla.data.check_rules import RULES, Known, limits_of
from flagscale_vla.data.faults import BadSampleError, Fault
from flagscale_vla.data.gather import join
from flagscale_vla.data.indexing import published_digests
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.scan import digest_shard
from flagscale_vla.data.shards import KEY_RULE, SPLITS
from flagscale_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from flagscale_vla.data.statistics import gather_source, read_statistics
from flagscale_vla.data.store import Store
from flagscale_vla.data.tar import LAST_MEMBER, BrokenTarError, Buffer, Group, group_members, walk_tar
from flagscale_vla.records import Action, RawSample
from flagscale_vla.robots.embodiments import FILE_NAME as EMBODIMENTS_FILE
from flagscale_vla.robots.embodiments import Embodiment, read_embodiments
from flagscale_vla.robots.statistics import RobotStatistics

WORDS = {
    "tar": "shards are whole, plain tars with samples in them",
    "digest": "shards are, byte for byte, those that shards.json and statistics.json name",
    "key": "keys are letters, digits, _ and -, come once in a split, and a sample's members lie side by side",
    "schema": "KEY.json is of a known version and lists segments of known kinds",
    "member": "every member that KEY.json names is there and is what it should be, and there is no other",
    **{name: words for name, (_, words) in RULES.items()},
    "time": "an episode's frames follow each other in equal steps, none missing or twice",
    "split": "no episode has samples in both splits",
}
"""All rules in the order of the table, and what each says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that does not hold somewhere."""

    rule: str
    fault: Fault


@dataclass(slots=True, kw_only=True)
class ShardCheck:
    """What was found in one shard."""

    shard: str
    samples: int = 0
    checked: Counter[str] = field(default_factory=Counter)
    """by rule, how many samples (shards, episodes) it was held against"""
    findings: list[Finding] = field(default_factory=list)
    keys: dict[str, None] = field(default_factory=dict)
    """in the order of the samples"""
    frames: dict[str, list[int]] = field(default_factory=dict)
    """of each episode, in the order of the samples"""

    def note(self, rule: str, member: str, reasons: Iterable[str]) -> None:
        """Count one check of a rule, and what it found."""
        self.checked[rule] += 1
        for reason in reasons:
            self.findings.append(Finding(rule=rule, fault=Fault(shard=self.shard, member=member, reason=reason)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found in a folder."""

    url: str
    shards: int
    samples: int
    checked: Mapping[str, int]
    findings: tuple[Finding, ...]
    """in the order of splits, shards and samples; those between shards last"""

    def to_json(self) -> dict[str, Any]:
        """For `--json`: by rule its words, how much was checked, and every fault with its place."""
        by_rule: dict[str, list[Fault]] = {rule: [] for rule in WORDS}
        for finding in self.findings:
            by_rule[finding.rule].append(finding.fault)
        rules = {
            rule: {
                "says": words,
                "checked": self.checked.get(rule, 0),
                "faults": [{"shard": f.shard, "member": f.member, "reason": f.reason} for f in by_rule[rule]],
            }
            for rule, words in WORDS.items()
        }
        return {"folder": self.url, "shards": self.shards, "samples": self.samples, "rules": rules}


def check_folder(store: Store, *, processes: int, decode: bool) -> Check:
    """Hold all shards of a folder against all rules.

    Ranges come from `statistics.json` beside the shards, or, where it is of other shards, are gathered first.

    Args:
        decode: whether pictures are decoded; else only their headers are read.

    Raises:
        ValueError: there are no shards at all, or a file beside them is damaged.
        OSError: a shard cannot be read, or a process died.
    """
    splits = {split: store.list_shards(split) for split in SPLITS}
    total = sum(map(len, splits.values()))
    if not total:
        raise ValueError(f"{store.url} holds neither train-*.tar nor heldout-*.tar")
    known, digests = open_known(store, decode, processes), kept_digests(store)
    shards = [shard for names in splits.values() for shard in names]
    work = partial(check_shard, store, known, digests)
    done = map_jobs(work, shards, min(processes, total))
    checks = {check.shard: check for check in tqdm(done, desc="checking", total=total, unit="tar")}
    return join_checks(store.url, {split: [checks[shard] for shard in names] for split, names in splits.items()})


def open_known(store: Store, decode: bool, processes: int) -> Known:
    """What samples are held against.

    Raises:
        ValueError: `embodiments.json` or `statistics.json` is damaged.
    """
    content = store.find(EMBODIMENTS_FILE)
    embodiments = read_embodiments(content, f"{store.url}/{EMBODIMENTS_FILE}") if content is not None else {}
    statistics = open_statistics(store, embodiments, processes)
    limits = {
        (robot, kind): limits_of(part)
        for robot, entry in statistics.items()
        for kind, part in (("state", entry.state), ("action", entry.action))
        if part.count
    }
    return Known(embodiments=embodiments, limits=limits, decode=decode)


def open_statistics(store: Store, embodiments: Mapping[str, Embodiment], processes: int) -> dict[str, RobotStatistics]:
    """The statistics beside the shards, if they are of these training shards, or else new ones; none without robots."""
    content, shards = store.find(STATISTICS_FILE), store.list_shards("train")
    if content is not None:
        statistics = read_statistics(content, f"{store.url}/{STATISTICS_FILE}")
        if [entry["name"] for entry in json.loads(content)["shards"]] == list(shards):
            return statistics
    if not embodiments or not shards:
        return {}
    return join([gather_source(store, "train", processes).gatherers])


def kept_digests(store: Store) -> dict[str, dict[str, str]]:
    """By shard, then by the file that tells it, what its digest was."""
    kept = {shard: {"shards.json": digest} for shard, digest in published_digests(store).items()}
    content = store.find(STATISTICS_FILE)
    for entry in json.loads(content)["shards"] if content is not None else ():
        kept.setdefault(entry["name"], {})[STATISTICS_FILE] = entry["blake2b"]
    return kept


def check_shard(store: Store, known: Known, digests: Mapping[str, Mapping[str, str]], shard: str) -> ShardCheck:
    """Hold one shard against every rule that needs no other."""
    check = ShardCheck(shard=shard)
    with store.whole(shard) as buffer:
        try:
            for group in group_members(walk_tar(buffer, whole=True)):
                check_group(check, group, buffer, known)
            check.note("tar", "(whole file)", [] if check.samples else ["holds no sample"])
        except BrokenTarError as error:
            check.note("tar", error.member, [str(error)])
    if expected := digests.get(shard):
        found = digest_shard(store, shard)
        wrong = [f"has digest {found}, {origin} says {told}" for origin, told in expected.items() if told != found]
        check.note("digest", "(whole file)", wrong)
    return check


def check_group(check: ShardCheck, group: Group, buffer: Buffer, known: Known) -> None:
    """Hold one sample against every rule of samples. A part of one whose key came before is not looked into."""
    check.samples += 1
    wrong = [] if KEY_RULE.fullmatch(group.key) else [f"key {group.key!r} has other letters than the rule allows"]
    if group.key in check.keys:
        check.note("key", group.key, [*wrong, "comes again after other samples: interleaved, or twice"])
        return
    check.note("key", group.key, wrong)
    check.keys[group.key] = None
    raw = parse(check, group, buffer)
    if raw is None:
        return
    for rule, (holds, _) in RULES.items():
        found = holds(raw, known)
        if found is not None:
            check.note(rule, group.key, found)
    note_frame(check, raw, parse_meta(check.shard, group, buffer))


def parse(check: ShardCheck, group: Group, buffer: Buffer) -> RawSample | None:
    """The sample; None, with a finding, where its members do not make one."""
    try:
        raw = parse_sample(check.shard, group, buffer)
    except BadSampleError as error:
        fault = Fault.of(check.shard, error)
        rule = "schema" if fault.member == f"{group.key}.{LAST_MEMBER}" else "member"
        if rule == "member":
            check.note("schema", group.key, [])
        check.note(rule, fault.member, [fault.reason])
        return None
    check.note("schema", group.key, [])
    strangers = sorted(set(group.members) - named_members(group, buffer))
    check.note("member", group.key, [f"{name} is in no segment" for name in strangers])
    return raw


def named_members(group: Group, buffer: Buffer) -> set[str]:
    """The members that a sample's JSON names, itself among them."""
    header = group.members[LAST_MEMBER]
    segments = json.loads(buffer[header.start : header.start + header.size])["segments"]
    named = {LAST_MEMBER}
    for entry in segments:
        named.update(entry[kind] for kind in ("image", "state", "action", "valid") if kind in entry)
        named.update(entry.get("video", ()))
    return named


def note_frame(check: ShardCheck, raw: RawSample, meta: Mapping[str, Any]) -> None:
    """Note the frame of a sample that is one moment of an episode: a question, and an action that answers it."""
    frame, actions = meta.get("frame"), [segment for segment in raw.segments if isinstance(segment, Action)]
    is_moment = len(actions) == 1 and isinstance(raw.segments[-1], Action) and "episode" in meta
    if is_moment and isinstance(frame, int):
        episode = " ".join(str(meta.get(name, "")) for name in ("source", "task", "episode")).strip()
        check.frames.setdefault(episode, []).append(frame)


def join_checks(url: str, splits: Mapping[str, Sequence[ShardCheck]]) -> Check:
    """All shards together, and what shows only between them."""
    checks = [check for parts in splits.values() for check in parts]
    counted = sum((check.checked for check in checks), Counter[str]())
    findings = [finding for check in checks for finding in check.findings]
    seen: dict[str, str] = {}
    for parts in splits.values():
        findings += repeated_keys(parts)
        episodes = join_frames(parts)
        counted["time"] += len(episodes)
        for episode, (shard, frames) in episodes.items():
            findings += [Finding(rule="time", fault=fault) for fault in time_faults(shard, episode, frames)]
            if (other := seen.setdefault(episode, shard)) != shard:
                fault = Fault(shard=shard, member=episode, reason=f"has samples in {other} of another split")
                findings.append(Finding(rule="split", fault=fault))
    counted["split"] = len(seen)
    samples = sum(check.samples for check in checks)
    return Check(url=url, shards=len(checks), samples=samples, checked=counted, findings=tuple(findings))


def join_frames(checks: Sequence[ShardCheck]) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Of each episode of a split, the first shard that has samples of it, and all its frames in ascending order."""
    found: dict[str, tuple[str, list[int]]] = {}
    for check in checks:
        for episode, frames in check.frames.items():
            found.setdefault(episode, (check.shard, []))[1].extend(frames)
    return {episode: (shard, np.sort(np.asarray(frames, np.int64))) for episode, (shard, frames) in found.items()}


def repeated_keys(checks: Sequence[ShardCheck]) -> Iterator[Finding]:
    """Keys of a split that come in more than one of its shards."""
    first: dict[str, str] = {}
    for check in checks:
        for key in check.keys:
            if (shard := first.setdefault(key, check.shard)) != check.shard:
                fault = Fault(shard=check.shard, member=key, reason=f"comes in {shard} too")
                yield Finding(rule="key", fault=fault)


def time_faults(shard: str, episode: str, frames: NDArray[np.int64]) -> Iterator[Fault]:
    """What is wrong with an episode's frames, in ascending order: the commonest step is held to be the right one.

    Only the last step may be shorter, as where an episode's last frame is always taken.
    """
    steps = np.diff(frames)
    sizes, counts = np.unique(steps[steps > 0], return_counts=True)
    usual = int(sizes[counts.argmax()]) if len(sizes) else 1
    for place in np.flatnonzero(steps != usual).tolist():
        step, frame = int(steps[place]), int(frames[place])
        if step > usual:
            reason = f"frames between {frame} and {frame + step} are missing; steps are {usual} elsewhere"
        elif step == 0:
            reason = f"frame {frame} comes twice"
        elif place == len(steps) - 1:
            continue
        else:
            reason = f"frame {frame + step} follows {frame}; steps are {usual} elsewhere"
        yield Fault(shard=shard, member=episode, reason=reason)
