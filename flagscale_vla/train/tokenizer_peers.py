"""Other tokenizers on the same chunks: at as many tokens as ours takes, and along their rate-distortion curves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flagscale_vla.action.beast import BeastSettings, fit_beast
from flagscale_vla.action.binning import Binning
from flagscale_vla.action.fast import fit_fast
from flagscale_vla.action.rates import fast_at_rate
from flagscale_vla.action.tokenizer import ActionTokenizer, Floats
from flagscale_vla.action.units import Units
from flagscale_vla.config.tokenizer_run import TokenizerKind, TokenizerRun
from flagscale_vla.train.tokenizer_data import FitData
from flagscale_vla.train.tokenizer_errors import Errors, RobotErrors, measure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting of a tokenizer, on the held-out chunks."""

    label: str
    tokens: float
    """mean number of tokens of a chunk"""
    mae: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Settings of one tokenizer."""

    name: str
    points: tuple[Point, ...]
    by_robot: Mapping[str, tuple[Point, ...]]
    """the same settings, on the chunks of each robot alone"""

    def error_at(self, robot: str, tokens: float) -> float | None:
        """A robot's error at `tokens` a chunk of its own; None where no two settings lie around that.

        Between settings the logarithm of the error is taken as straight over the tokens.
        """
        points = sorted(self.by_robot[robot], key=lambda point: point.tokens)
        rates = [point.tokens for point in points]
        if not rates[0] <= tokens <= rates[-1]:
            return None
        return float(np.exp(np.interp(tokens, rates, np.log([point.mae for point in points]))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A tokenizer at a given mean number of tokens, on the held-out chunks."""

    name: str
    setting: str
    tokens: float
    mae: float
    entropy: float
    """bits per token"""
    by_robot: Mapping[str, Point]
    """rate and error of each robot"""
    tokenizer: ActionTokenizer
    """where two settings take turns, the finer"""
    curve: Curve


def point(label: str, errors: Errors | RobotErrors) -> Point:
    """Where a setting stands in the plane of rate and distortion."""
    return Point(label=label, tokens=errors.tokens_per_chunk, mae=errors.mae)


def make_curve(name: str, settings: Mapping[str, Errors]) -> Curve:
    """Of the errors of each setting, by its label."""
    robots = {robot for errors in settings.values() for robot in errors.robots}
    return Curve(
        name=name,
        points=tuple(point(label, errors) for label, errors in settings.items()),
        by_robot={
            robot: tuple(point(label, errors.robots[robot]) for label, errors in settings.items())
            for robot in sorted(robots)
        },
    )


def mix(share: float, less: float, more: float) -> float:
    """The mean over chunks of which `share` has `more`."""
    return (1.0 - share) * less + share * more


def mix_points(share: float, less: Point, more: Point) -> Point:
    """The same of rate and error."""
    return Point(label=less.label, tokens=mix(share, less.tokens, more.tokens), mae=mix(share, less.mae, more.mae))


class Peers:
    """Fits the other tokenizers on the chunks that ours was fitted on.

    Args:
        run: settings of each.
        data: chunks to fit and to measure on.
    """

    def __init__(self, run: TokenizerRun, data: FitData) -> None:
        self.run, self.data = run, data

    @cached_property
    def _chunks(self) -> dict[str, Floats]:
        return {name: np.asarray(robot.values) for name, robot in self.data.train.robots.items()}

    @cached_property
    def _fast_chunks(self) -> dict[str, Floats]:
        some = self.data.train.choose(self.run.fast.max_chunks)
        return {name: np.asarray(robot.values) for name, robot in some.robots.items()}

    @cached_property
    def _units(self) -> Units:
        """Of every robot, those left out among them."""
        return Units(self.data.embodiments, self.data.statistics)

    def own(self, kind: TokenizerKind) -> ActionTokenizer:
        """The tokenizer of a run of that kind, as its settings have it."""
        match kind:
            case TokenizerKind.fast:
                return self.fast(self.run.fast.scale)
            case TokenizerKind.beast:
                return self.beast(self.run.beast.points, self.run.beast.degree)
            case TokenizerKind.binning:
                return self.binning()
            case TokenizerKind.omnisat:
                raise ValueError("kind=omnisat is fitted step by step, not in one go")

    def at(self, tokens: float) -> tuple[Peer, ...]:
        """The tokenizers that the run is not of, at a mean number of tokens as near to `tokens` as they come."""
        makers = {
            TokenizerKind.fast: self.fast_at,
            TokenizerKind.beast: self.beast_at,
            TokenizerKind.binning: self.binning_at,
        }
        return tuple(make(tokens) for kind, make in makers.items() if kind is not self.run.kind)

    def curve(self, kind: TokenizerKind) -> Curve:
        """The settings of a kind that the run asks for."""
        match kind:
            case TokenizerKind.fast:
                return self._fast_curve({})
            case TokenizerKind.beast:
                return self._beast_curve("BEAST", self.run.beast.degree, {})
            case _:
                errors = measure(self.binning(), self.data.heldout)
                return make_curve(kind.value, {"each value": errors})

    def fast(self, scale: float) -> ActionTokenizer:
        """FAST at a scale."""
        return fit_fast(self._fast_chunks, self._units, scale=scale, vocab_size=self.run.fast.vocab)

    def fast_at(self, tokens: float) -> Peer:
        """FAST at the scale whose mean number of tokens on the held-out chunks is nearest."""
        measured = {name: np.asarray(robot.values) for name, robot in self.data.heldout.robots.items()}
        vocab = self.run.fast.vocab
        logger.info("looking for the scale at which FAST takes %.2f tokens a chunk", tokens)
        fitted = fast_at_rate(self._fast_chunks, measured, self._units, wanted=tokens, vocab_size=vocab)
        errors = measure(fitted, self.data.heldout)
        label = f"scale {fitted.settings.scale:.3g}"
        curve = self._fast_curve({label: errors})
        return Peer(
            name="FAST",
            setting=f"{label}, {vocab} codes",
            tokens=errors.tokens_per_chunk,
            mae=errors.mae,
            entropy=errors.entropy,
            by_robot={name: point(label, robot) for name, robot in errors.robots.items()},
            tokenizer=fitted,
            curve=curve,
        )

    def _fast_curve(self, found: Mapping[str, Errors]) -> Curve:
        scales = self.run.curves.fast_scales
        return make_curve(
            "FAST", {**found, **{f"scale {scale:g}": measure(self.fast(scale), self.data.heldout) for scale in scales}}
        )

    def beast(self, points: int, degree: int) -> ActionTokenizer:
        """BEAST with so many control points of each dim, and the highest degrees that these allow."""
        config = self.run.beast
        settings = BeastSettings(
            points=points,
            degree=min(degree, points - 1),
            gripper_degree=min(config.gripper_degree, points - 1),
            ridge=config.ridge,
            bins=config.bins,
        )
        fitted = list(self._chunks)
        units = Units(self.data.embodiments, {name: self.data.statistics[name] for name in fitted})
        return fit_beast(self._chunks, units, settings)

    def _best_beast(self, points: int, most_degree: int) -> tuple[int, ActionTokenizer, Errors]:
        """The degree with the least error on the held-out chunks, which favours BEAST."""
        degrees = range(min(most_degree, points - 1) + 1)
        fitted = [(degree, self.beast(points, degree)) for degree in degrees]
        tried = [(degree, beast, measure(beast, self.data.heldout)) for degree, beast in fitted]
        return min(tried, key=lambda entry: entry[2].mae)

    def beast_at(self, tokens: float) -> Peer:
        """BEAST at exactly this mean number of tokens."""
        return self._taking_turns("BEAST", tokens, self.run.beast.degree)

    def binning_at(self, tokens: float) -> Peer:
        """Bins of the means over equal runs of steps, for a bin for each value has but one rate: that of BEAST with
        control points of degree 0."""
        peer = self._taking_turns("binning", tokens, 0)
        alone = self.curve(TokenizerKind.binning)
        return replace(peer, curve=replace(peer.curve, points=(*peer.curve.points, *alone.points)))

    def _taking_turns(self, name: str, tokens: float, most_degree: int) -> Peer:
        """Control points at a mean number of tokens that no number of them has: some chunks have one point more."""
        logger.info("%s at %.2f tokens a chunk", name, tokens)
        each = self.data.heldout_dims
        points = max(1, int(tokens / each))
        share = float(np.clip(tokens / each - points, 0.0, 1.0))
        less, more = (self._best_beast(count, most_degree) for count in (points, points + 1))
        return Peer(
            name=name,
            setting=f"{points} control points of degree {less[0]}, in {share:.0%} of the chunks {points + 1} of degree "
            f"{more[0]}; {self.run.beast.bins} bins",
            tokens=mix(share, less[2].tokens_per_chunk, more[2].tokens_per_chunk),
            mae=mix(share, less[2].mae, more[2].mae),
            entropy=mix(share, less[2].entropy, more[2].entropy),
            by_robot={
                robot: mix_points(share, point(name, errors), point(name, more[2].robots[robot]))
                for robot, errors in less[2].robots.items()
            },
            tokenizer=more[1],
            curve=self._beast_curve(name, most_degree, {points: less[2], points + 1: more[2]}),
        )

    def _beast_curve(self, name: str, most_degree: int, found: Mapping[int, Errors]) -> Curve:
        wanted = [count for count in self.run.curves.beast_points if count not in found]
        points = {**found, **{count: self._best_beast(count, most_degree)[2] for count in wanted}}
        return make_curve(name, {f"{count} points": points[count] for count in sorted(points)})

    def binning(self) -> ActionTokenizer:
        """A bin for each value."""
        return Binning(bins=self.run.binning.bins, units=self._units)
