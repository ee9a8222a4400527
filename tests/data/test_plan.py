"""The plan: every sample once per pass, in rows that any number of ranks share, from its arguments alone."""

from __future__ import annotations

import contextlib
import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale_vla.data.mixture import Mixture, MixtureEndError, Stage
from flagscale_vla.data.plan import Plan, Position, plan_era

CAPACITY = 1024
SIZES = (900, 70, 7)


def lengths(sizes: tuple[int, ...] = SIZES) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(3)
    return [generator.integers(40, 601, size) for size in sizes]


def make_plan(position: Position | None = None, *, epochs: int = 0, seed: int = 0) -> Plan:
    mixture = Mixture(
        lengths(), [Stage(samples=math.inf, weights=(6, 3, 1))], seed=seed, era=400, by_tokens=False, epochs=epochs
    )
    return Plan(mixture, CAPACITY, 64, position or Position())


Ids = tuple[tuple[int, int, int], ...]


def ids(plan: Plan, number: int) -> Ids:
    """(source, sample, pass) of each sample of a row."""
    row = plan.row(number)
    return tuple(zip(row.source.tolist(), row.item.tolist(), row.epoch.tolist(), strict=True))


@pytest.fixture(scope="module")
def unbroken() -> list[Ids]:
    plan = make_plan()
    return [ids(plan, number) for number in range(2000)]


def test_rows_hold_whole_samples_within_their_length(unbroken: list[Ids]) -> None:
    known = lengths()
    assert all(0 < sum(int(known[source][item]) for source, item, _ in row) <= CAPACITY for row in unbroken)


def test_each_pass_gives_each_sample_once(unbroken: list[Ids]) -> None:
    whole_eras = unbroken[: make_plan().position(1999).first]
    seen = [sample for row in whole_eras for sample in row]
    assert len(set(seen)) == len(seen)
    for source, size in enumerate(SIZES):
        passes = [number for own, _, number in seen if own == source]
        assert max(passes) > 2
        for number in range(max(passes)):
            assert sorted(item for own, item, at in seen if (own, at) == (source, number)) == list(range(size))


@pytest.mark.parametrize("packs", [0, 1, 171, 1000, 1999])
def test_a_position_goes_on_at_once_and_planning_from_the_beginning_ends_there_too(
    unbroken: list[Ids], packs: int
) -> None:
    position = make_plan().position(packs)
    assert position.first <= packs
    resumed = make_plan(position)
    assert [ids(resumed, number) for number in range(packs, min(packs + 30, 2000))] == unbroken[packs : packs + 30]
    assert make_plan(position).position(packs) == position
    assert ids(make_plan(Position(packs=packs)), packs) == unbroken[packs] if packs < 2000 else True


def test_resuming_plans_no_era_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    position = make_plan().position(1500)
    assert position.era > 5
    planned: list[int] = []

    def noted(mixture: Mixture, era: int, first: int, *, capacity: int, pool: int) -> object:
        planned.append(era)
        return plan_era(mixture, era, first, capacity=capacity, pool=pool)

    monkeypatch.setattr("flagscale_vla.data.plan.plan_era", noted)
    make_plan(position).row(1500)
    assert planned == [position.era]


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4), (8, 6, 3, 2), (4, 1, 8, 6)])
def test_the_order_is_the_same_through_three_changes_of_the_number_of_ranks(
    unbroken: list[Ids], sizes: tuple[int, ...]
) -> None:
    """Each stretch is read by another number of ranks, each of which plans for itself from the position alone."""
    taken: list[Ids] = []
    position = Position()
    for size, steps in zip(sizes, (37, 29, 41, 23), strict=True):
        plans = [make_plan(position) for _ in range(size)]
        ranks = [
            [ids(plan, position.packs + rank + step * size) for step in range(steps)] for rank, plan in enumerate(plans)
        ]
        taken += [ranks[rank][step] for step in range(steps) for rank in range(size)]
        ends = {plan.position(position.packs + steps * size) for plan in plans}
        assert len(ends) == 1
        position = ends.pop()
    assert taken == unbroken[: position.packs]


def test_order_depends_on_the_seed(unbroken: list[Ids]) -> None:
    other = make_plan(seed=1)
    assert [ids(other, number) for number in range(20)] != unbroken[:20]


def test_any_row_is_found_in_any_order(unbroken: list[Ids]) -> None:
    plan = make_plan()
    for number in (1999, 0, 700, 701, 3, 1500):
        assert ids(plan, number) == unbroken[number]


def test_what_was_given_is_counted_by_source(unbroken: list[Ids]) -> None:
    known = lengths()
    for packs in (0, 5, 170, 1999):
        given = make_plan(make_plan().position(packs)).given(packs)
        before = [sample for row in unbroken[:packs] for sample in row]
        for source, part in enumerate(given):
            own = [item for found, item, _ in before if found == source]
            assert part.samples == len(own)
            assert part.tokens == sum(int(known[source][item]) for item in own)
            assert part.passes == len(own) / SIZES[source]


def test_readers_far_ahead_make_nothing_be_planned_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def noted(mixture: Mixture, era: int, first: int, *, capacity: int, pool: int) -> object:
        planned.append(era)
        return plan_era(mixture, era, first, capacity=capacity, pool=pool)

    monkeypatch.setattr("flagscale_vla.data.plan.plan_era", noted)
    plan = make_plan()
    for packs in range(0, 1000, 50):
        plan.row(packs + 900)
        position = plan.position(packs)
        assert sum(part.samples for part in plan.given(packs)) >= packs
    assert position.era < max(planned) - 2
    assert planned == sorted(set(planned))


def test_rows_end_with_the_mixture() -> None:
    plan = make_plan(epochs=2)
    # The smallest source gives its 7 samples twice, and is a tenth of all.
    assert plan.mixture.positions(int(plan.mixture.num_eras)) == (84, 42, 14)
    end = sum(len(plan.era(era)) for era in range(int(plan.mixture.num_eras)))
    rows = [ids(plan, number) for number in range(end)]
    assert sum(map(len, rows)) == len({sample for row in rows for sample in row}) == 140
    with pytest.raises(MixtureEndError):
        plan.row(end)


def test_neighbours_in_a_shard_are_spread_over_rows() -> None:
    mixture = Mixture(
        [np.full(10_000, 100)], [Stage(samples=math.inf, weights=(1,))], seed=0, era=20_000, by_tokens=False, epochs=0
    )
    plan = Plan(mixture, 1000, 64, Position())
    spans = [np.ptp(plan.row(number).item) for number in range(500)]
    assert np.mean(spans) > 7000


def test_every_stretch_of_an_era_has_all_of_its_sources() -> None:
    long_and_short = [np.full(4000, length, np.int64) for length in (200, 20)]
    mixture = Mixture(
        long_and_short, [Stage(samples=8000, weights=(1, 1))], seed=0, era=8000, by_tokens=False, epochs=0
    )
    era = plan_era(mixture, 0, 0, capacity=CAPACITY, pool=1000)
    thirds = np.array_split(era.source, 3)
    assert [float(np.mean(third)) for third in thirds] == pytest.approx([0.5] * 3, abs=0.1)


def any_mixture(seed: int) -> Mixture:
    """Sources of any size, weights of any scale, any stages, and eras down to a single sample."""
    draw, numbers = random.Random(seed), np.random.default_rng(seed)
    known = [numbers.integers(1, draw.choice([5, 50, 900]), draw.randint(1, 300)) for _ in range(draw.randint(1, 4))]
    stages = [
        Stage(samples=draw.randint(1, 500), weights=tuple(draw.choice([1e-3, 1, 2.5]) for _ in known))
        for _ in range(draw.randint(0, 3))
    ]
    stages.append(Stage(samples=math.inf, weights=tuple(draw.choice([1e-3, 1, 7]) for _ in known)))
    return Mixture(
        known,
        stages,
        seed=seed,
        era=draw.choice([1, 7, 100, 5000]),
        by_tokens=draw.random() < 0.5,
        epochs=draw.choice([0, 1, 2]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_mixture_rows_go_on_anywhere_and_nothing_comes_twice(seed: int) -> None:
    mixture = any_mixture(seed)
    plan = Plan(mixture, CAPACITY, 16, Position())
    rows: list[Ids] = []
    with contextlib.suppress(MixtureEndError):
        rows += (ids(plan, number) for number in range(60))
    seen = [sample for row in rows for sample in row]
    assert seen
    assert len(set(seen)) == len(seen)
    for packs in (1, len(rows) // 3, len(rows) - 1):
        resumed = Plan(mixture, CAPACITY, 16, plan.position(packs))
        assert [ids(resumed, number) for number in range(packs, len(rows))] == rows[packs:]
        assert plan.position(packs) == Plan(mixture, CAPACITY, 16, Position()).position(packs)
