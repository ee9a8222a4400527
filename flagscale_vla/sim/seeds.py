"""Seeds of episodes, kept apart by what the episode is for."""

from __future__ import annotations

from enum import IntEnum

BITS = 30
SPACING = 1_000_003
"""Distance between the seeds of two runs; more episodes than a run records."""


class Purpose(IntEnum):
    """What an episode is for; its seeds meet those of no other purpose."""

    train = 0
    heldout = 1
    evaluate = 2


def episode_seed(purpose: Purpose, run_seed: int, number: int) -> int:
    """The seed in [0, 2**32) of a run's episode `number`; distinct for distinct numbers below 2**30."""
    return (purpose << BITS) | ((run_seed * SPACING + number) % (1 << BITS))
