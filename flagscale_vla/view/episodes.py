"""A shard's samples put together again as the episodes they were cut from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale_vla.records import Action, Image, RawSample, State, Text, Video
from flagscale_vla.robots.embodiments import Embodiment

LOOSE = "single samples"
"""Where samples are listed that belong to no episode, as questions about pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One sample as it lies in a shard."""

    number: int
    """in the index"""
    raw: RawSample
    meta: Mapping[str, Any]
    """what its JSON keeps besides the segments"""

    @property
    def episode(self) -> str:
        """Which episode it belongs to, in words."""
        if "episode" not in self.meta:
            return LOOSE
        task = self.meta.get("task", "")
        return f"{task} #{self.meta['episode']}".strip()

    @property
    def frame(self) -> int:
        """Its place in the episode."""
        return int(self.meta.get("frame", 0))


def group_episodes(samples: Iterable[Seen]) -> dict[str, list[Seen]]:
    """Episodes by name, each with its samples in the order of their frames."""
    episodes: dict[str, list[Seen]] = defaultdict(list)
    for sample in samples:
        episodes[sample.episode].append(sample)
    return {name: sorted(members, key=lambda seen: (seen.frame, seen.number)) for name, members in episodes.items()}


def list_episodes(samples: Iterable[Seen]) -> list[dict[str, object]]:
    """What the list of a shard's episodes says of each."""
    return [
        {
            "name": name,
            "frames": len(members),
            "instruction": instruction(members[0]),
            "robot": robot_of(members[0].raw),
            "first": members[0].number,
        }
        for name, members in group_episodes(samples).items()
    ]


def instruction(sample: Seen) -> str:
    """The task in words: as the shard has it, else the first text that is no answer."""
    if "instruction" in sample.meta:
        return str(sample.meta["instruction"])
    asked = (segment.text for segment in sample.raw.segments if isinstance(segment, Text) and not segment.supervised)
    return next(asked, "")


def robot_of(raw: RawSample) -> str:
    """The robot of a sample's states and actions; empty for none."""
    return next((segment.robot for segment in raw.segments if isinstance(segment, State | Action)), "")


def stored_pictures(raw: RawSample) -> list[tuple[str, bytes]]:
    """(name, JPEG or PNG bytes) of a sample's pictures and of its films' frames, in reading order."""
    pictures: list[tuple[str, bytes]] = []
    for segment in raw.segments:
        if isinstance(segment, Image):
            pictures.append((segment.name, segment.encoded))
        elif isinstance(segment, Video):
            pictures += [(f"{segment.name} {number}", frame) for number, frame in enumerate(segment.frames)]
    return pictures


def play(samples: Sequence[Seen], embodiments: Mapping[str, Embodiment]) -> dict[str, object]:
    """An episode for the player: frames with their cameras, and what was felt and done at each.

    Args:
        samples: of one episode, in order; see `group_episodes`.
        embodiments: the robots that the shards know.
    """
    robot = embodiments.get(robot_of(samples[0].raw))
    return {
        "name": samples[0].episode,
        "instruction": instruction(samples[0]),
        "robot": robot.name if robot else "",
        "fps": robot.fps if robot else 1,
        "state_names": list(robot.state) if robot else [],
        "action_names": list(robot.action) if robot else [],
        "frames": [_frame(sample) for sample in samples],
    }


def _frame(sample: Seen) -> dict[str, object]:
    """One frame; its state and action are the first ones, the action's first step that of this frame."""
    states = [segment.values.tolist() for segment in sample.raw.segments if isinstance(segment, State)]
    actions = [segment.values[0].tolist() for segment in sample.raw.segments if isinstance(segment, Action)]
    return {
        "sample": sample.number,
        "frame": sample.frame,
        "phase": str(sample.meta.get("phase", sample.meta.get("subtask", ""))),
        "cameras": [name for name, _ in stored_pictures(sample.raw)],
        "state": states[0] if states else [],
        "action": actions[0] if actions else [],
    }
