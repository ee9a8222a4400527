"""The rules that one sample must hold; each says what is wrong, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data import images
from flagscale_vla.data.conversation import is_assistants
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.records import Action, Image, RawSample, Segment, State, Video
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import Statistics, smallest_spread

SPANS = 10.0
"""A number may lie this many spans between the 1st and the 99th percentile outside of them."""
NORM_TOLERANCE = 0.01
"""How far a quaternion's length may be from 1."""
QUATERNION = re.compile(r"(.*)q([wxyz])")

Doubles = NDArray[np.float64]
Limits = tuple[Doubles, Doubles]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What samples are held against."""

    embodiments: Mapping[str, Embodiment]
    limits: Mapping[tuple[str, str], Limits]
    """least and largest plausible number of each dim, f64[A0] each, by robot and `state` or `action`"""
    decode: bool
    """whether pictures are decoded, and not only their headers read"""


def limits_of(statistics: Statistics) -> Limits:
    """The range outside of which a number is not plausible; of a dim that hardly ever moves it is all that was seen."""
    low, high = np.asarray(statistics.min), np.asarray(statistics.max)
    q01, q99 = np.asarray(statistics.q01), np.asarray(statistics.q99)
    rare = q99 - q01 <= smallest_spread(low, high)
    q01, q99 = np.where(rare, low, q01), np.where(rare, high, q99)
    margin = SPANS * np.maximum(q99 - q01, smallest_spread(low, high))
    return q01 - margin, q99 + margin


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionTurn:
    """A user's turn and the assistant's turn with actions that answers it."""

    asked: tuple[Segment, ...]
    actions: tuple[Action, ...]

    @property
    def robot(self) -> str:
        """Whose actions they are."""
        return self.actions[0].robot


def action_turns(raw: RawSample) -> list[ActionTurn]:
    """The action turns of a sample, in order."""
    turns: list[ActionTurn] = []
    asked: tuple[Segment, ...] = ()
    for own, run in groupby(raw.segments, is_assistants):
        segments = tuple(run)
        actions = tuple(segment for segment in segments if isinstance(segment, Action))
        if actions:
            turns.append(ActionTurn(asked=asked, actions=actions))
        asked = () if own else segments
    return turns


Rule = Callable[[RawSample, Known], list[str] | None]
"""What is wrong with a sample; None where the rule does not apply to it."""


def check_image(raw: RawSample, known: Known) -> list[str] | None:
    """Every picture is a JPEG or PNG of sides that are read, and can be decoded."""
    encoded = list(pictures_of(raw))
    if not encoded:
        return None
    return [reason for name, content in encoded if (reason := image_fault(name, content, known.decode))]


def pictures_of(raw: RawSample) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each picture and each frame of a film."""
    for segment in raw.segments:
        if isinstance(segment, Image):
            yield segment.name, segment.encoded
        elif isinstance(segment, Video):
            yield from ((f"{segment.name}-{number:03d}", frame) for number, frame in enumerate(segment.frames))


def image_fault(name: str, encoded: bytes, decode: bool) -> str:
    """What is wrong with a picture; empty for nothing."""
    try:
        header = images.open_image(name, encoded)
        if decode:
            images.decode(name, encoded)
    except BadSampleError as error:
        return f"{error.member}: {error.reason}"
    long, short = max(header.size), min(header.size)
    ok = long <= images.LONGEST_RATIO * short
    return (
        "" if ok else f"{name}: {header.width}x{header.height}; one side is over {images.LONGEST_RATIO} times the other"
    )


def check_views(raw: RawSample, known: Known) -> list[str] | None:
    """The user's turn before an action shows as many pictures as the robot has cameras."""
    turns = [turn for turn in action_turns(raw) if turn.robot in known.embodiments]
    if not turns:
        return None
    wrong = []
    for number, turn in enumerate(turns, 1):
        seen = sum(isinstance(segment, Image) for segment in turn.asked)
        cameras = known.embodiments[turn.robot].cameras
        if seen != len(cameras):
            wrong.append(f"action turn {number} has {seen} pictures; robot {turn.robot!r} has cameras {list(cameras)}")
    return wrong


def check_state(raw: RawSample, known: Known) -> list[str] | None:
    """The user's turn before an action has one state."""
    turns = action_turns(raw)
    counts = [sum(isinstance(segment, State) for segment in turn.asked) for turn in turns]
    wrong = [f"action turn {number} has {count} states" for number, count in enumerate(counts, 1) if count != 1]
    return wrong if turns else None


def check_pairing(raw: RawSample, known: Known) -> list[str] | None:
    """Every answer follows a question, and the last turn is an answer."""
    owners = [own for own, _ in groupby(raw.segments, is_assistants)]
    if not owners:
        return ["has no segments"]
    first = ["the assistant speaks first"] if owners[0] else []
    return first if owners[-1] else [*first, "the user's last turn has no answer"]


def check_valid(raw: RawSample, known: Known) -> list[str] | None:
    """A chunk begins inside the episode, and no step follows one that is past its end."""
    chunks = [segment.valid for segment in raw.segments if isinstance(segment, Action)]
    wrong = [f"chunk {number} begins past the episode's end" for number, valid in enumerate(chunks, 1) if not valid[0]]
    wrong += [
        f"chunk {number} goes on after the episode's end"
        for number, valid in enumerate(chunks, 1)
        if valid[0] and (np.diff(valid.astype(np.int8)) > 0).any()
    ]
    return wrong if chunks else None


def numbers_of(raw: RawSample) -> list[tuple[str, State | Action]]:
    """(`state` or `action`, segment) of all states and actions."""
    return [
        ("state" if isinstance(segment, State) else "action", segment)
        for segment in raw.segments
        if isinstance(segment, State | Action)
    ]


def check_dims(raw: RawSample, known: Known) -> list[str] | None:
    """The robot is in `embodiments.json`, and its states and actions have as many numbers as it names."""
    numbers = numbers_of(raw)
    wrong = []
    for kind, segment in numbers:
        robot = known.embodiments.get(segment.robot)
        if robot is None:
            wrong.append(f"robot {segment.robot!r} is not in embodiments.json, which has {sorted(known.embodiments)}")
        elif segment.values.shape[-1] != len(dims_of(robot, kind)):
            found, dims = segment.values.shape[-1], len(dims_of(robot, kind))
            wrong.append(f"its {kind} has {found} dims; robot {robot.name!r} has {dims}")
    return list(dict.fromkeys(wrong)) if numbers else None


def dims_of(robot: Embodiment, kind: str) -> tuple[str, ...]:
    """The names of a robot's dims."""
    return robot.state if kind == "state" else robot.action


def check_finite(raw: RawSample, known: Known) -> list[str] | None:
    """No number is NaN or infinite."""
    numbers = numbers_of(raw)
    wrong = [f"its {kind} holds NaN or infinity" for kind, segment in numbers if not np.isfinite(segment.values).all()]
    return list(dict.fromkeys(wrong)) if numbers else None


def check_range(raw: RawSample, known: Known) -> list[str] | None:
    """Numbers lie where statistics say that such numbers lie; those past an episode's end do not count."""
    found = None
    for kind, segment in numbers_of(raw):
        limits = known.limits.get((segment.robot, kind))
        values = segment.values[segment.valid] if isinstance(segment, Action) else segment.values[None]
        if limits is None or values.shape[-1] != len(limits[0]) or not len(values):
            continue
        found = found or []
        names = dims_of(known.embodiments[segment.robot], kind)
        # A NaN is in no range and out of none: it is another rule's.
        step, dim = np.nonzero((values < limits[0]) | (values > limits[1]))
        if len(dim):
            first, others = dim[0], sorted({names[other] for other in dim} - {names[dim[0]]})
            reason = f"{kind} {names[first]}={values[step[0], first]:.6g}"
            rest = f", and so for {', '.join(others)}" if others else ""
            found.append(f"{reason} is not in [{limits[0][first]:.6g}, {limits[1][first]:.6g}]{rest}")
    return found


def check_quaternion(raw: RawSample, known: Known) -> list[str] | None:
    """Four dims that are named qw, qx, qy and qz, with any words before them, have length 1."""
    found = None
    for kind, segment in numbers_of(raw):
        robot = known.embodiments.get(segment.robot)
        if robot is None or segment.values.shape[-1] != len(dims_of(robot, kind)):
            continue
        for prefix, dims in quaternions_of(dims_of(robot, kind)).items():
            found = found or []
            values = segment.values[segment.valid] if isinstance(segment, Action) else segment.values[None]
            lengths = np.linalg.norm(values[:, dims].astype(np.float64), axis=1)
            # A comparison that also finds NaN.
            wrong = lengths[~(np.abs(lengths - 1) <= NORM_TOLERANCE)]
            if len(wrong):
                found.append(f"{kind} {prefix}q has length {wrong[0]:.4g}")
    return found


def quaternions_of(names: tuple[str, ...]) -> dict[str, list[int]]:
    """By what stands before them, the places of the four numbers of each quaternion."""
    places: dict[str, dict[str, int]] = {}
    for place, name in enumerate(names):
        if found := QUATERNION.fullmatch(name):
            places.setdefault(found[1], {})[found[2]] = place
    return {prefix: list(parts.values()) for prefix, parts in places.items() if len(parts) == len("wxyz")}


RULES: dict[str, tuple[Rule, str]] = {
    "image": (check_image, "pictures are JPEG or PNG, of sides that are read, and can be decoded"),
    "views": (check_views, "before an action there are as many pictures as the robot has cameras"),
    "state": (check_state, "before an action there is one state"),
    "pairing": (check_pairing, "every answer follows a question, and the last turn is an answer"),
    "valid": (check_valid, "a chunk begins inside the episode and ends with it"),
    "dims": (check_dims, "states and actions are a known robot's, with as many numbers as it names"),
    "finite": (check_finite, "no number is NaN or infinite"),
    "range": (check_range, "numbers lie where statistics say that such numbers lie"),
    "quaternion": (check_quaternion, "qw, qx, qy and qz have length 1"),
}
"""Of single samples: the rule, and its words."""
