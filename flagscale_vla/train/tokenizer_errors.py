"""How far chunks come back from where they were, in scaled values and in real units, and in how many tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.tokenizer import ActionTokenizer, Floats
from flagscale_vla.config.data import Normalization
from flagscale_vla.data.actions import Chunks, RobotChunks
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.layout import Kind, Part, parts_of
from flagscale_vla.robots.rotations import angle_between
from flagscale_vla.robots.statistics import make_scaler

BATCH = 4096
"""Chunks encoded at once, so that memory does not grow with their number."""
MILLI = 1e3

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotErrors:
    """Of all chunks of one robot. Errors are over steps inside the episode, tokens and values over whole chunks."""

    chunks: int
    tokens: int
    values: int
    """H x A0 numbers in each chunk"""
    measured: int
    """numbers inside the episode"""
    absolute: float
    """sum of their errors in scaled values"""
    by_dim: tuple[float, ...]
    """mean error of each action dim, in scaled values"""
    real: dict[str, float]
    """mean error of each part in its unit, as `position_mm`, `rotation_deg`, or `gripper_units`"""
    counts: NDArray[np.int64]
    """i64[num_codes] how often each code stands in the strings"""

    @property
    def mae(self) -> float:
        """Mean absolute error in scaled values: 2 is the way from the 1st to the 99th percentile."""
        return self.absolute / self.measured

    @property
    def tokens_per_chunk(self) -> float:
        """Mean length of a string."""
        return self.tokens / self.chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of one tokenizer, by robot. Means over robots weigh each value, or each chunk, alike."""

    robots: dict[str, RobotErrors]

    @property
    def mae(self) -> float:
        """Mean absolute error in scaled values."""
        return self._sum("absolute") / self._sum("measured")

    @property
    def tokens_per_chunk(self) -> float:
        """Mean length of a string."""
        return self._sum("tokens") / self._sum("chunks")

    @property
    def compression(self) -> float:
        """Values per token."""
        return self._sum("values") / self._sum("tokens")

    @property
    def entropy(self) -> float:
        """Entropy of the codes as one source without memory, bits per token."""
        return entropy_bits(np.sum([robot.counts for robot in self.robots.values()], axis=0))

    def _sum(self, name: str) -> float:
        return float(sum(robot.__getattribute__(name) for robot in self.robots.values()))


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Entropy of a source of these frequencies, in bits; 0 of none."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def measure(tokenizer: ActionTokenizer, chunks: Chunks) -> Errors:
    """Encode and decode all chunks, and compare.

    Raises:
        ChunkError: a robot that the tokenizer does not know.
    """
    return Errors(robots={name: measure_robot(tokenizer, robot) for name, robot in chunks.robots.items()})


def measure_robot(tokenizer: ActionTokenizer, chunks: RobotChunks) -> RobotErrors:
    """Encode and decode the chunks of one robot, and compare."""
    embodiment = tokenizer.embodiments[chunks.robot]
    scale = make_scaler(tokenizer.statistics[chunks.robot].action, Normalization.quantile).scale
    tally = _Tally(embodiment, scale, tokenizer.num_codes)
    for batch in batches(chunks):
        codes = tokenizer.encode(batch.robot, batch.values, batch.starts)
        decoded = tokenizer.decode(batch.robot, codes, batch.values.shape[1], batch.starts)
        tally.count_codes(codes)
        tally.compare(batch.values[batch.valid], decoded[batch.valid])
    return tally.finish(chunks)


def batches(chunks: RobotChunks) -> Iterable[RobotChunks]:
    """The chunks in order, `BATCH` at a time."""
    for begin in range(0, len(chunks), BATCH):
        yield chunks.take(np.arange(begin, min(begin + BATCH, len(chunks))))


class _Tally:
    """Adds up what batches of one robot give."""

    def __init__(self, embodiment: Embodiment, scale: Floats, num_codes: int) -> None:
        self.embodiment, self.scale = embodiment, scale
        self.counts = np.zeros(num_codes, np.int64)
        self.tokens = self.steps = 0
        self.dims = np.zeros(len(scale))
        self.real: dict[str, float] = {}

    def count_codes(self, codes: Iterable[NDArray[np.int64]]) -> None:
        flat = np.concatenate(list(codes))
        self.tokens += len(flat)
        self.counts += np.bincount(flat, minlength=len(self.counts))

    def compare(self, given: Floats, decoded: Floats) -> None:
        """Steps f32[n, A0] in own units and what they came back as."""
        self.steps += len(given)
        self.dims += (np.abs(decoded.astype(np.float64) - given) / self.scale).sum(axis=0)
        for name, errors in real_errors(self.embodiment, given, decoded).items():
            self.real[name] = self.real.get(name, 0.0) + float(errors.sum())

    def finish(self, chunks: RobotChunks) -> RobotErrors:
        return RobotErrors(
            chunks=len(chunks),
            tokens=self.tokens,
            values=chunks.values.size,
            measured=self.steps * len(self.scale),
            absolute=float(self.dims.sum()),
            by_dim=tuple((self.dims / self.steps).tolist()),
            real={name: total / self.steps for name, total in self.real.items()},
            counts=self.counts,
        )


def real_errors(embodiment: Embodiment, given: Floats, decoded: Floats) -> Mapping[str, Doubles]:
    """The error of each part at each step, f64[n] by `[ARM_]KIND_UNIT`.

    A position's is the distance in millimetres, a rotation's the angle between the two in degrees, that of joints and
    bases the mean over their dims. Where `action_scale` is unknown, or has none for a part, the unit is the action's.
    """
    found: dict[str, Doubles] = {}
    scale = np.asarray(embodiment.action_scale or (0.0,) * len(embodiment.action))
    for part in parts_of(embodiment):
        dims = list(part.dims)
        begin = f"{part.arm}_" if part.arm else ""
        one, other = given[:, dims].astype(np.float64), decoded[:, dims].astype(np.float64)
        for name, errors in _part_errors(part, scale[dims], one, other).items():
            found[begin + name] = errors
    return found


def _part_errors(part: Part, scale: Doubles, one: Doubles, other: Doubles) -> dict[str, Doubles]:
    name, gaps = part.kind.value, np.abs(one - other)
    if not scale.all():
        return {f"{name}_units": gaps.mean(axis=-1)}
    match part.kind:
        case Kind.position:
            return {f"{name}_mm": MILLI * np.linalg.norm((one - other) * scale, axis=-1)}
        case Kind.rotation if len(part.dims) == Kind.rotation.width:
            return {f"{name}_deg": np.degrees(angle_between(one * scale, other * scale))}
        case Kind.base:
            turns = np.asarray(part.slots) == Kind.base.width - 1
            moved = {} if turns.all() else {f"{name}_mm": MILLI * (gaps * scale)[:, ~turns].mean(axis=-1)}
            turned = {f"{name}_deg": np.degrees(gaps * scale)[:, turns].mean(axis=-1)} if turns.any() else {}
            return moved | turned
        case Kind.rotation | Kind.joints:
            return {f"{name}_deg": np.degrees(gaps * scale).mean(axis=-1)}
        case Kind.gripper:
            return {f"{name}_mm": MILLI * (gaps * scale).mean(axis=-1)}
