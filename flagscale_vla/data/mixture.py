"""Which samples of which sources come in which order: a pure function of (lengths, weights, seed, era).

A source gives its samples pass after pass, each pass in a permutation of its own. A mixture takes from its sources by
weight. Its endless stream is cut into eras, each planned at once. How far every source is when an era begins follows
from the era's number alone, so that no era needs those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

KEPT_PASSES = 2
MERGE, PASS, ROWS = 0, 1, 2
"""What a generator is for; the first number after the seed."""


class MixtureEndError(ValueError):
    """A source has made all of its passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the curriculum."""

    samples: float
    """of the whole stream; infinite for all the rest"""
    weights: tuple[float, ...]
    """share of each source, in any scale"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A piece of the stream, in order."""

    source: NDArray[np.int32]
    """i32[n] number of the source"""
    item: Integers
    """i64[n] number of the sample in its source"""
    epoch: Integers
    """i64[n] passes that the source had made before"""


class Stream:
    """One source's samples in endless order.

    Args:
        lengths: i64[n] tokens of its samples, n at least 1.
        seed: with
        number: of the source, and that of the pass: where the order of a pass comes from.
    """

    def __init__(self, lengths: Integers, seed: int, number: int) -> None:
        self.lengths, self.seed, self.number = lengths, seed, number
        self.tokens = int(lengths.sum())
        self._orders: dict[int, NDArray[np.signedinteger]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def _pass(self, number: int) -> NDArray[np.signedinteger]:
        """Samples in the order of one pass; the last two asked for are kept, no wider than they must be."""
        if number not in self._orders:
            while len(self._orders) >= KEPT_PASSES:
                del self._orders[min(self._orders)]
            order = generator(self.seed, PASS, self.number, number).permutation(len(self))
            self._orders[number] = order.astype(np.min_scalar_type(-len(self)))
        return self._orders[number]

    def take(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """(samples, passes made before), each i64[stop - start], of positions [start, stop)."""
        passes = np.arange(start, stop) // len(self)
        parts = [
            self._pass(number)[max(start - number * len(self), 0) : stop - number * len(self)]
            for number in range(start // len(self), -(-stop // len(self)))
        ]
        return np.concatenate([np.empty(0, np.int64), *parts]), passes

    def tokens_before(self, position: int) -> int:
        """Tokens of all samples before a position."""
        passes, place = divmod(position, len(self))
        own = int(self.lengths[self._pass(passes)[:place]].sum()) if place else 0
        return passes * self.tokens + own

    def position(self, tokens: float) -> int:
        """The position before which the number of tokens is nearest to `tokens`."""
        passes = int(tokens // self.tokens)
        own = self.lengths[self._pass(passes)]
        middles = np.cumsum(own) - own / 2
        return passes * len(self) + int(np.searchsorted(middles, tokens - passes * self.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """A stage as the mixture goes through it."""

    samples: float
    rates: tuple[float, ...]
    """what each source gives per sample of the stream: samples, or tokens"""
    first_era: int


class Mixture:
    """The stream over all sources.

    Args:
        lengths: of each source, i64[n] tokens of its samples.
        stages: one after another; only the last may be infinite.
        seed: of the order.
        era: samples planned at once, about. A source that is alone has eras of equal size that end with its passes.
        by_tokens: whether weights are shares of tokens; otherwise of samples.
        epochs: passes after which a source gives nothing more, and the stream ends; 0 for endless.

    Raises:
        ValueError: a source is empty.
    """

    def __init__(
        self, lengths: Sequence[Integers], stages: Sequence[Stage], *, seed: int, era: int, by_tokens: bool, epochs: int
    ) -> None:
        if not lengths or not all(map(len, lengths)):
            raise ValueError("every source must have a sample, and there must be one")
        self.seed, self.by_tokens = seed, by_tokens
        self.streams = tuple(Stream(part, seed, number) for number, part in enumerate(lengths))
        alone = len(self.streams[0])
        self.era: float = alone / -(-alone // era) if len(self.streams) == 1 else era
        self._spans = self._lay_out(stages, epochs or math.inf)

    def _lay_out(self, stages: Sequence[Stage], epochs: float) -> tuple[_Span, ...]:
        """The stages up to where the first source has made all of its passes."""
        left = [epochs * self._whole(stream) for stream in self.streams]
        spans: list[_Span] = []
        for stage in stages:
            rates = self._rates(stage.weights)
            until = min((rest / rate for rest, rate in zip(left, rates, strict=True) if rate), default=math.inf)
            samples = min(stage.samples, until)
            first = self._end(spans[-1]) if spans else 0
            spans.append(_Span(samples=samples, rates=rates, first_era=first))
            if samples == until or math.isinf(samples):
                break
            left = [rest - rate * samples for rest, rate in zip(left, rates, strict=True)]
        return tuple(spans)

    def _end(self, span: _Span) -> int:
        """The era after the last of a finite span; what rounding adds to its length is no era."""
        return span.first_era + math.ceil(span.samples / self.era - 1e-6)

    def _whole(self, stream: Stream) -> int:
        return stream.tokens if self.by_tokens else len(stream)

    def _rates(self, weights: Sequence[float]) -> tuple[float, ...]:
        """What each source gives per sample of the stream."""
        shares = [weight / sum(weights) for weight in weights]
        if not self.by_tokens:
            return tuple(shares)
        # A source's samples come as its share of tokens divided by its mean length.
        counts = [share * len(stream) / stream.tokens for share, stream in zip(shares, self.streams, strict=True)]
        return tuple(share / sum(counts) for share in shares)

    @property
    def num_eras(self) -> float:
        """Eras in the whole stream; infinite where it does not end."""
        last = self._spans[-1]
        return math.inf if math.isinf(last.samples) else self._end(last)

    @property
    def num_tokens(self) -> float:
        """Tokens of the whole stream; infinite where it does not end."""
        if math.isinf(self.num_eras):
            return math.inf
        ends = self.positions(int(self.num_eras))
        return sum(stream.tokens_before(end) for stream, end in zip(self.streams, ends, strict=True))

    def positions(self, era: int) -> tuple[int, ...]:
        """How many samples each source has given when an era begins, within one of what the weights say."""
        given = [0.0] * len(self.streams)
        for number, span in enumerate(self._spans):
            following = self._spans[number + 1].first_era if number + 1 < len(self._spans) else math.inf
            samples = span.samples if era >= following else min((era - span.first_era) * self.era, span.samples)
            given = [amount + rate * samples for amount, rate in zip(given, span.rates, strict=True)]
            if era <= following:
                break
        return tuple(map(self._position, self.streams, given))

    def _position(self, stream: Stream, given: float) -> int:
        return stream.position(given) if self.by_tokens else round(given)

    def draw(self, era: int) -> Drawn:
        """The samples of one era. Each source's keep their order and are spread evenly over it.

        Raises:
            MixtureEndError: the stream has ended before.
        """
        if era >= self.num_eras:
            raise MixtureEndError(
                f"era {era} is past the last of {self.num_eras:.0f}: a source has made all of its passes"
            )
        random = generator(self.seed, MERGE, era)
        spans = list(zip(self.positions(era), self.positions(era + 1), strict=True))
        places = [_spread(stop - start, random) for start, stop in spans]
        taken = [stream.take(*span) for stream, span in zip(self.streams, spans, strict=True)]
        sources = [np.full(stop - start, number, np.int32) for number, (start, stop) in enumerate(spans)]
        order = np.argsort(np.concatenate(places), kind="stable")
        return Drawn(
            source=np.concatenate(sources)[order],
            item=np.concatenate([items for items, _ in taken])[order],
            epoch=np.concatenate([passes for _, passes in taken])[order],
        )


def _spread(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """f64[count] rising places in [0, 1), one in each of `count` equal parts."""
    return (np.arange(count) + random.random(count)) / max(count, 1)


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """The random generator of one purpose: Philox, keyed by all the numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *numbers])))
