"""Mixtures: weights are kept to within one sample at every era, and nothing but the arguments decides."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale_vla.data.mixture import Drawn, Mixture, Stage, Stream

SIZES = (30_000, 777, 5)
"""Sources of very different sizes."""


def sources(sizes: Sequence[int] = SIZES) -> list[NDArray[np.int64]]:
    """Lengths, longer from source to source."""
    generator = np.random.default_rng(7)
    return [generator.integers(40, 400 * (number + 1), size) for number, size in enumerate(sizes)]


def stages(*parts: tuple[float, Sequence[float]]) -> list[Stage]:
    return [Stage(samples=samples, weights=tuple(weights)) for samples, weights in parts]


def make(
    parts: Sequence[tuple[float, Sequence[float]]] = ((math.inf, (6, 3, 1)),),
    *,
    lengths: list[NDArray[np.int64]] | None = None,
    seed: int = 0,
    era: int = 1000,
    by_tokens: bool = False,
    epochs: int = 0,
) -> Mixture:
    lengths = sources() if lengths is None else lengths
    return Mixture(lengths, stages(*parts), seed=seed, era=era, by_tokens=by_tokens, epochs=epochs)


def drawn(mixture: Mixture, eras: int) -> list[Drawn]:
    return [mixture.draw(era) for era in range(eras)]


def test_samples_follow_the_weights_within_one_at_every_era() -> None:
    counts = np.zeros(3)
    for era, part in enumerate(drawn(make(), 40), start=1):
        own = np.bincount(part.source, minlength=3)
        assert np.abs(own - [600, 300, 100]).max() <= 1
        counts += own
        assert np.abs(counts - np.asarray([600, 300, 100]) * era).max() <= 1


def test_weights_that_do_not_divide_an_era_hold_in_the_long_run() -> None:
    weights = np.asarray([1.0, math.pi, 1e-4])
    mixture = make([(math.inf, weights.tolist())])
    for era in (1, 7, 100, 12_345):
        ideal = weights / weights.sum() * 1000 * era
        assert np.abs(np.asarray(mixture.positions(era)) - ideal).max() <= 0.5 + 1e-6


def test_tokens_follow_the_weights_within_one_sample_at_every_era() -> None:
    lengths = sources()
    longest = max(int(part.max()) for part in lengths)
    tokens = np.zeros(3)
    for part in drawn(make(by_tokens=True), 40):
        for number in range(3):
            tokens[number] += lengths[number][part.item[part.source == number]].sum()
        assert np.abs(tokens - tokens.sum() * np.asarray([0.6, 0.3, 0.1])).max() <= longest
    samples = sum(len(part.item) for part in drawn(make(by_tokens=True), 40))
    assert abs(samples - 40_000) < 400


@pytest.mark.parametrize("by_tokens", [False, True])
def test_each_pass_gives_each_sample_once_in_another_order(by_tokens: bool) -> None:
    mixture = make(by_tokens=by_tokens)
    parts = drawn(mixture, 60)
    for number, size in enumerate(SIZES):
        items = np.concatenate([part.item[part.source == number] for part in parts])
        epochs = np.concatenate([part.epoch[part.source == number] for part in parts])
        assert (np.diff(epochs) >= 0).all()
        whole = [items[epochs == epoch].tolist() for epoch in range(len(items) // size)]
        assert all(sorted(order) == list(range(size)) for order in whole)
        if size > 100 and len(whole) > 1:
            assert whole[0] != whole[1]


def test_sources_are_spread_evenly_over_an_era() -> None:
    part = make(era=10_000).draw(3)
    for tenth in np.array_split(part.source, 10):
        assert np.abs(np.bincount(tenth, minlength=3) - [600, 300, 100]).max() <= 3


@pytest.mark.parametrize("by_tokens", [False, True])
def test_an_era_is_the_same_whatever_was_asked_before(by_tokens: bool) -> None:
    parts = [(2500, (1, 1, 0)), (math.inf, (6, 3, 1))]
    inorder = drawn(make(parts, by_tokens=by_tokens), 20)
    mixture = make(parts, by_tokens=by_tokens)
    for era in (19, 3, 3, 0, 11):
        random.seed(era)
        np.random.seed(era)
        part = mixture.draw(era)
        assert np.array_equal(part.item, inorder[era].item)
        assert np.array_equal(part.source, inorder[era].source)
        assert np.array_equal(part.epoch, inorder[era].epoch)
        after = random.random(), np.random.rand()
        random.seed(era)
        np.random.seed(era)
        assert after == (random.random(), np.random.rand()), "a global generator was used"
    other = make(parts, by_tokens=by_tokens, seed=1).draw(3)
    assert not np.array_equal(other.item, inorder[3].item)


def test_stages_change_the_weights_where_they_say() -> None:
    mixture = make([(2500, (1, 1, 0)), (1000, (0, 0, 1)), (math.inf, (1, 0, 1))])
    counts = [np.bincount(part.source, minlength=3).tolist() for part in drawn(mixture, 6)]
    assert counts == [[500, 500, 0], [500, 500, 0], [250, 250, 0], [0, 0, 1000], [500, 0, 500], [500, 0, 500]]
    by_tokens = make([(2500, (1, 1, 0)), (math.inf, (0, 0, 1))], by_tokens=True)
    parts = drawn(by_tokens, 5)
    assert {int(source) for part in parts[:3] for source in part.source} == {0, 1}
    assert {int(source) for part in parts[3:] for source in part.source} == {2}


def test_a_source_alone_has_eras_that_end_with_its_passes() -> None:
    lengths = [np.full(2500, 10)]
    mixture = make([(math.inf, (1.0,))], lengths=lengths)
    parts = drawn(mixture, 9)
    assert [len(part.item) for part in parts] == [833, 834, 833] * 3
    assert [set(part.epoch.tolist()) for part in parts] == [{0}, {0}, {0}, {1}, {1}, {1}, {2}, {2}, {2}]


@pytest.mark.parametrize("by_tokens", [False, True])
def test_epochs_end_the_stream_with_the_first_source_that_is_used_up(by_tokens: bool) -> None:
    lengths = [np.full(1000, 10), np.full(300, 20)]
    mixture = make([(math.inf, (1, 1))], lengths=lengths, era=100, by_tokens=by_tokens, epochs=2)
    eras = int(mixture.num_eras)
    # By samples both give 600; by tokens 600 samples of 20 are as much as 1,200 of 10.
    first = 1200 if by_tokens else 600
    assert mixture.positions(eras) == (first, 600)
    assert mixture.num_tokens == first * 10 + 600 * 20
    parts = drawn(mixture, eras)
    assert sum(len(part.item) for part in parts) == first + 600
    assert max(int(part.epoch.max()) for part in parts) == 1
    with pytest.raises(ValueError, match="made all of its passes"):
        mixture.draw(eras)


def test_one_pass_of_a_source_alone_is_all_of_it() -> None:
    lengths = sources()[:1]
    for by_tokens in (False, True):
        mixture = make([(math.inf, (1.0,))], lengths=lengths, era=777, by_tokens=by_tokens, epochs=1)
        items = np.concatenate([part.item for part in drawn(mixture, int(mixture.num_eras))])
        assert sorted(items.tolist()) == list(range(SIZES[0]))
        assert mixture.num_tokens == lengths[0].sum()


def test_epochs_end_inside_a_later_stage() -> None:
    lengths = [np.full(1000, 10), np.full(1000, 10)]
    mixture = make([(1000, (1, 1)), (math.inf, (9, 1))], lengths=lengths, era=300, epochs=1)
    assert mixture.positions(int(mixture.num_eras)) == (1000, 556)


def test_positions_and_tokens_are_each_others_inverse() -> None:
    stream = Stream(sources()[1], 0, 1)
    for position in (0, 1, 776, 777, 778, 77_700, 123_456):
        assert stream.position(stream.tokens_before(position)) == position


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="must have a sample"):
        make(lengths=[np.asarray([5]), np.empty(0, np.int64)], parts=[(math.inf, (1, 1))])
