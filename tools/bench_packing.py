"""How full rows are, how equal the work of ranks is, and what planning costs.

    python tools/bench_packing.py [--samples 40000] [--seeds 3]

Made-up lengths: short robot steps (mean 362 tokens), interleaved robot samples (mean 3,800) and a mix of short steps
with pictures and text (mean 2,500), in rows of 4,096, 8,192 and 16,384. What does not fit into a row is left out.

Fill is the share of a row that is not padding. The other side is best fit over the whole list, longest first, which
needs all samples at once; and first fit, longest first, in windows of 16 samples that are flushed, as some trainers do.
Work is counted for a language model of 3.09e9 parameters, 36 layers and a width of 2,048, forward and backward: every
token of the row, padding too, and causal attention inside each segment. Imbalance is the largest work of R neighbouring
rows by their mean, averaged over a plan's steps; beside it, of the same rows in any order. Times are the thread's own
CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.mixture import Mixture, Stage
from flagscale_vla.data.plan import EraPlan, plan_era

CAPACITIES = (4096, 8192, 16384)
POOLS = (64, 1000)
GOALS = {64: 0.98, 1000: 0.99}
RANKS = (2, 4, 8, 16, 32, 64)
GOAL_RANKS = (2, 4, 8, 16)
WINDOW = 16
TOKEN_FLOPS = 6 * 3.09e9
ATTENTION_FLOPS = 6 * 36 * 2048
MOST_IMBALANCE = 1.05
MOST_MICROSECONDS = 5.0

Lengths = NDArray[np.int64]


def make_mixes(count: int, seed: int) -> dict[str, Lengths]:
    """Lengths of each mix, i64[count]."""
    draw = np.random.default_rng(seed)

    def lognormal(mean: float, sigma: float) -> NDArray[np.float64]:
        return draw.lognormal(math.log(mean) - sigma**2 / 2, sigma, count)

    short, interleaved, pictures = lognormal(362, 0.5), lognormal(4000, 0.55), lognormal(4200, 0.6)
    mixed = np.where(draw.random(count) < 0.4, lognormal(362, 0.5), pictures)
    mixes = {"short robot steps": short, "interleaved robot": interleaved, "robot and VLM": mixed}
    return {name: lengths.clip(64, 8192).astype(np.int64) for name, lengths in mixes.items()}


def offline_rows(lengths: Lengths, capacity: int) -> int:
    """Rows of best fit over the whole list, longest first."""
    rooms: list[int] = []
    rows = 0
    for length in sorted(lengths.tolist(), reverse=True):
        place = bisect_left(rooms, length)
        rows += place == len(rooms)
        room = rooms.pop(place) if place < len(rooms) else capacity
        insort(rooms, room - length)
    return rows


def window_rows(lengths: Lengths, capacity: int) -> int:
    """Rows of first fit, longest first, in windows that are flushed."""
    rows = 0
    for start in range(0, len(lengths), WINDOW):
        rooms: list[int] = []
        for length in sorted(lengths[start : start + WINDOW].tolist(), reverse=True):
            place = next((place for place, room in enumerate(rooms) if room >= length), None)
            if place is None:
                rooms.append(capacity - length)
            else:
                rooms[place] -= length
        rows += len(rooms)
    return rows


def row_flops(plan: EraPlan, capacity: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(all, of attention alone) of each row, f64[rows]."""
    starts = np.concatenate([[0], plan.ends[:-1]])
    padding = capacity - np.add.reduceat(plan.tokens, starts)
    attention = ATTENTION_FLOPS * (np.add.reduceat(plan.tokens**2, starts) + padding**2)
    return TOKEN_FLOPS * capacity + attention, attention.astype(np.float64)


def imbalance(flops: NDArray[np.float64], ranks: int) -> float:
    """Mean over steps of the largest by the mean."""
    steps = flops[: len(flops) // ranks * ranks].reshape(-1, ranks)
    return float((steps.max(axis=1) / steps.mean(axis=1)).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One mix in rows of one length, through a pool of one size."""

    mix: str
    capacity: int
    pool: int
    seed: int
    samples: int
    fill: float
    fill_of_offline: float
    window_fill: float
    imbalance: dict[int, float]
    """by number of ranks"""
    shuffled_imbalance: float
    """of the same rows in any order, for the last of `GOAL_RANKS`"""
    attention_imbalance: dict[int, float]
    microseconds: float
    """of drawing, packing and arranging, for each sample"""


def measure(mix: str, lengths: Lengths, capacity: int, pool: int, seed: int) -> Result:
    """Plan one era of all samples."""
    mixture = Mixture(
        [lengths], [Stage(samples=math.inf, weights=(1,))], seed=seed, era=len(lengths), by_tokens=False, epochs=0
    )
    seconds = math.inf
    for _ in range(3):
        began = time.thread_time()
        plan = plan_era(mixture, 0, 0, capacity=capacity, pool=pool)
        seconds = min(seconds, time.thread_time() - began)
    tokens = int(lengths.sum())
    flops, attention = row_flops(plan, capacity)
    return Result(
        mix=mix,
        capacity=capacity,
        pool=pool,
        seed=seed,
        samples=len(lengths),
        fill=tokens / (len(plan) * capacity),
        fill_of_offline=offline_rows(lengths, capacity) / len(plan),
        window_fill=tokens / (window_rows(lengths, capacity) * capacity),
        imbalance={ranks: imbalance(flops, ranks) for ranks in RANKS},
        shuffled_imbalance=imbalance(np.random.default_rng(seed).permutation(flops), GOAL_RANKS[-1]),
        attention_imbalance={ranks: imbalance(attention, ranks) for ranks in RANKS},
        microseconds=1e6 * seconds / len(lengths),
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    head = f"{'mix':18} {'row':>6} {'pool':>5} {'fill':>7} {'of offline':>10} {'window':>7} {'us':>5}"
    print(head + "".join(f"{f'R={ranks}':>7}" for ranks in RANKS) + "  any order R=16   attention alone")
    results = []
    for seed in range(asked.seeds):
        for mix, lengths in make_mixes(asked.samples, seed).items():
            for capacity in CAPACITIES:
                fitting = lengths[lengths <= capacity]
                for pool in POOLS:
                    results.append(measure(mix, fitting, capacity, pool, seed))
                    show(results[-1])
    judge(results)


def show(result: Result) -> None:
    """One line of the table."""
    figures = f"{result.fill:7.4f} {result.fill_of_offline:10.4f} {result.window_fill:7.4f} {result.microseconds:5.2f}"
    both = (
        "".join(f"{part[ranks]:7.3f}" for ranks in RANKS) for part in (result.imbalance, result.attention_imbalance)
    )
    print(
        f"{result.mix:18} {result.capacity:6} {result.pool:5} {figures}"
        + f"{result.shuffled_imbalance:16.3f}".join(both)
    )


def judge(results: list[Result]) -> None:
    """The worst of each figure beside its goal, as one line of JSON."""
    figures: dict[str, float] = {}
    for pool, goal in GOALS.items():
        own = [result for result in results if result.pool == pool]
        figures[f"least_fill_of_offline_pool_{pool}"] = round(min(result.fill_of_offline for result in own), 4)
        figures[f"goal_pool_{pool}"] = goal
    figures["most_imbalance"] = round(max(result.imbalance[r] for result in results for r in GOAL_RANKS), 4)
    figures["goal_imbalance"] = MOST_IMBALANCE
    figures["most_imbalance_in_any_order"] = round(max(result.shuffled_imbalance for result in results), 4)
    figures["most_microseconds"] = round(max(result.microseconds for result in results), 2)
    figures["goal_microseconds"] = MOST_MICROSECONDS
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
