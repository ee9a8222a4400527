"""Randomness that belongs to the sample: a function of (seed, epoch, key), never of rank, worker or order."""

from __future__ import annotations

import hashlib
from enum import Enum

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray


class Draw(Enum):
    """What is drawn. Each has a stream of its own, so that one more draw of one kind never shifts another kind."""

    turn = "turn"
    """which chunk of a conversation is denoised"""
    flow = "flow"
    """noise and flow time"""
    augment = "augment"


class _Digest(ISeedSequence):
    """Gives a digest as the key of a generator. Given a key itself, numpy's first asks the system for another seed."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        """Philox asks for its two words of 64 bits."""
        return self.words


def stream(seed: int, epoch: int, key: str, draw: Draw) -> np.random.Generator:
    """The random generator of one kind of draw for one sample in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{draw.value}/{key}".encode(), digest_size=16).digest()
    seed_sequence = _Digest(np.frombuffer(digest, "<u8"))
    return np.random.Generator(np.random.Philox(seed_sequence))  # type: ignore[arg-type]  # numpy's stubs name a subclass
