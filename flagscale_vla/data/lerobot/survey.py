"""Which episodes lie in shards, and whether all of their frames do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flagscale_vla.data.convert.converter import Refusal
from flagscale_vla.data.convert.pictures import read_size
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.place import Place
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.store import Store
from flagscale_vla.data.tar import BrokenTarError, Buffer, Group, group_members, walk_tar
from flagscale_vla.records import Action, Image, RawSample, State, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameShape:
    """What all frames of a dataset must have in common."""

    robot: str
    state: int
    action: int
    """dims"""
    pictures: tuple[tuple[str, int, int], ...]
    """camera, height and width, by camera"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameEntry:
    """One sample that is a frame of an episode."""

    split: str
    source: str
    """the dataset that the episode came from, or the simulator's task"""
    episode: int
    frame: int
    num_frames: int
    """of the episode, as the sample says; 0 where it does not"""
    words: str
    part: str
    """subtask or phase; empty for none"""
    shape: FrameShape
    place: Place


@dataclass(slots=True, kw_only=True)
class Survey:
    """What shards hold."""

    entries: list[FrameEntry] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def survey_shard(store: Store, shard: tuple[str, str]) -> Survey:
    """The frames in one shard, given as (split, name)."""
    split, name = shard
    found = Survey()
    shapes: dict[FrameShape, FrameShape] = {}
    with store.whole(name) as buffer:
        try:
            for group in group_members(walk_tar(buffer, whole=True)):
                _survey_group(found, shapes, split, name, group, buffer)
        except BrokenTarError as error:
            found.refused.append(Refusal(place=f"{name}/{error.member}", reason=f"shard is broken: {error}"))
    return found


def _survey_group(
    found: Survey, shapes: dict[FrameShape, FrameShape], split: str, name: str, group: Group, buffer: Buffer
) -> None:
    try:
        sample, meta = parse_sample(name, group, buffer), parse_meta(name, group, buffer)
        reason = why_no_frame(sample, meta)
        if reason:
            found.skipped[reason] += 1
            return
        shape = shape_of(sample)
        place = Place(name, group.start, group.end - group.start)
        found.entries.append(make_entry(sample, meta, split, place, shapes.setdefault(shape, shape)))
    except BadSampleError as error:
        found.refused.append(Refusal(place=error.member, reason=f"sample cannot be read: {error.reason}"))
    except ValueError as error:
        found.refused.append(Refusal(place=f"{name}/{group.key}", reason=str(error)))


def why_no_frame(sample: RawSample, meta: Mapping[str, Any]) -> str:
    """Why a sample is not a frame of an episode, as a conversation or a question; empty where it is."""
    kinds = Counter(type(segment) for segment in sample.segments)
    words = [segment for segment in sample.segments if isinstance(segment, Text)]
    once = kinds[State] == kinds[Action] == kinds[Text] == 1
    if not once or words[0].supervised or kinds.total() != kinds[Image] + 3:
        return "not one state, one instruction and one action"
    if not all(isinstance(meta.get(name), int) for name in ("episode", "frame")):
        return "no number of its episode and frame"
    return ""


def shape_of(sample: RawSample) -> FrameShape:
    """What a frame holds.

    Raises:
        ValueError: a picture cannot be read, or its action's first step is not valid.
    """
    pictures, state, action, robot = [], 0, 0, ""
    for segment in sample.segments:
        match segment:
            case Image(name=name, encoded=encoded):
                width, height = read_size(encoded)
                pictures.append((name, height, width))
            case State(values=values, robot=robot):
                state = len(values)
            case Action(values=values, valid=valid):
                action = values.shape[1]
                if not valid[0]:
                    raise ValueError("action of the frame itself is not valid")
    return FrameShape(robot=robot, state=state, action=action, pictures=tuple(sorted(pictures)))


def make_entry(sample: RawSample, meta: Mapping[str, Any], split: str, place: Place, shape: FrameShape) -> FrameEntry:
    """What is kept of a frame."""
    words = next(segment.text for segment in sample.segments if isinstance(segment, Text))
    return FrameEntry(
        split=split,
        source=str(meta.get("source") or meta.get("task") or ""),
        episode=meta["episode"],
        frame=meta["frame"],
        num_frames=int(meta.get("num_frames") or 0),
        words=words,
        part=str(meta.get("subtask") or meta.get("phase") or ""),
        shape=shape,
        place=place,
    )


def group_episodes(
    entries: Iterable[FrameEntry], splits: Sequence[str]
) -> tuple[list[tuple[FrameEntry, ...]], list[Refusal]]:
    """Whole episodes in order of split, source and number, their frames in order; and those that are not whole."""
    groups: dict[tuple[int, str, int], list[FrameEntry]] = {}
    for entry in entries:
        groups.setdefault((splits.index(entry.split), entry.source, entry.episode), []).append(entry)
    episodes = [tuple(sorted(groups[key], key=lambda entry: entry.frame)) for key in sorted(groups)]
    usual = usual_shape(episodes)
    whole, refused = [], []
    for frames in episodes:
        reason = why_refused(frames, usual)
        if reason:
            place = f"{frames[0].source or 'episode'} {frames[0].episode}"
            refused.append(Refusal(place=place, reason=reason, rows=len(frames)))
        else:
            whole.append(frames)
    return whole, refused


def usual_shape(episodes: Sequence[Sequence[FrameEntry]]) -> FrameShape | None:
    """The shape of most frames."""
    counts = Counter(frame.shape for frames in episodes for frame in frames)
    return max(counts, key=lambda shape: (counts[shape], repr(shape)), default=None)


def why_refused(frames: Sequence[FrameEntry], usual: FrameShape | None) -> str:
    """Why frames are no whole episode of a dataset; empty where they are."""
    numbers = [frame.frame for frame in frames]
    missing = sorted(set(range(max(numbers[-1] + 1, frames[0].num_frames))) - set(numbers))
    if missing:
        return f"frames are missing: {missing[:5]}{' and more' if len(missing) > 5 else ''}"
    if len(set(numbers)) != len(numbers):
        return "frames come twice"
    other = [frame for frame in frames if frame.shape != usual]
    return f"frames have another shape: {other[0].shape}, most have {usual}" if other else ""
