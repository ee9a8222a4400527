"""Try random strings of codes on a saved action tokenizer: legal ones must decode, all others must be refused.

    python tools/fuzz_codes.py FOLDER [--count 100000] [--horizon 16] [--seed 0]

FOLDER holds an `action_tokenizer.json`. A legal string is drawn code by code, each from those that the tokenizer's
grammar allows there; it must decode to finite actions within the range seen in training. An illegal one is a legal one
with a code that the grammar refuses at its place, or cut short, or with codes after its end; it must raise CodesError.
The robots take turns. Ends with 1 where any string did otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.tokenizer import ActionTokenizer, Codes, CodesError, Grammar
from flagscale_vla.action.units import Units

BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run found."""

    legal: int
    """strings drawn under the grammar"""
    decoded: int
    """of these, that became finite actions in range"""
    illegal: int
    refused: int
    """of these, that raised CodesError"""
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether every string did what it must."""
        return self.legal == self.decoded and self.illegal == self.refused

    @property
    def line(self) -> str:
        """For people."""
        rate = (self.legal + self.illegal) / self.seconds
        return (
            f"{self.decoded} of {self.legal} legal strings decoded to finite actions in range, "
            f"{self.refused} of {self.illegal} illegal ones were refused ({rate:.0f} a second)"
        )


def main() -> None:
    """Read the command line, try the strings, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100_000, help="strings of each sort")
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = fuzz(load_action_tokenizer(arguments.folder), arguments.count, arguments.horizon, arguments.seed)
    print(found.line)
    sys.exit(0 if found.is_clean else 1)


def fuzz(tokenizer: ActionTokenizer, count: int, horizon: int, seed: int) -> Found:
    """Try `count` legal and `count` illegal strings."""
    generator, start = np.random.default_rng(seed), time.monotonic()
    decoded = illegal = refused = 0
    for robot, size in batches(sorted(tokenizer.embodiments), count):
        grammar = tokenizer.grammar(robot, horizon)
        strings = [draw(grammar, generator) for _ in range(size)]
        decoded += decodes(tokenizer, robot, strings, horizon)
        wrong = [damage(string, grammar, tokenizer.num_codes, generator) for string in strings]
        illegal += len(wrong)
        refused += sum(is_refused(tokenizer, robot, string, horizon) for string in wrong)
    seconds = time.monotonic() - start
    return Found(legal=count, decoded=decoded, illegal=illegal, refused=refused, seconds=seconds)


def batches(robots: list[str], count: int) -> Iterator[tuple[str, int]]:
    """Robots in turn, each with a share of `count`."""
    size = min(BATCH, -(-count // len(robots)))
    for place, start in enumerate(range(0, count, size)):
        yield robots[place % len(robots)], min(size, count - start)


def draw(grammar: Grammar, generator: np.random.Generator) -> Codes:
    """A random complete string."""
    codes: list[int] = []
    while len(legal := grammar.legal(codes)):
        codes.append(int(legal[generator.integers(len(legal))]))
        if len(codes) > grammar.longest:
            raise AssertionError(f"longer than the longest, {grammar.longest}: {codes}")
    return np.asarray(codes, np.int64)


def damage(codes: Codes, grammar: Grammar, num_codes: int, generator: np.random.Generator) -> Codes:
    """A string made illegal in one of three ways."""
    place = int(generator.integers(len(codes)))
    way = generator.integers(3)
    if way == 0:
        return codes[:place]
    if way == 1:
        return np.concatenate([codes, generator.integers(0, num_codes, place + 1)])
    outside = np.asarray([-1 - place, num_codes + place])
    refused = np.concatenate([np.setdiff1d(np.arange(num_codes), grammar.legal(codes[:place].tolist())), outside])
    changed = codes.copy()
    changed[place] = generator.choice(refused)
    return changed


def decodes(tokenizer: ActionTokenizer, robot: str, strings: list[Codes], horizon: int) -> int:
    """How many strings become finite actions within the range seen in training."""
    low, high = Units(tokenizer.embodiments, tokenizer.statistics).limits(robot)
    try:
        values = tokenizer.decode(robot, strings, horizon)
    except CodesError as error:
        print(f"refused a legal string of {robot}: {error}", file=sys.stderr)
        return 0
    within = np.isfinite(values) & (values >= low) & (values <= high)
    return int(within.all(axis=(1, 2)).sum())


def is_refused(tokenizer: ActionTokenizer, robot: str, codes: Codes, horizon: int) -> bool:
    """Whether a string raises the typed error."""
    try:
        tokenizer.decode(robot, [codes], horizon)
    except CodesError:
        return True
    print(f"decoded an illegal string of {robot}: {codes.tolist()}", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
