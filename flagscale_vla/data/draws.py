"""Randomness that belongs to the sample: a function of (seed, epoch, key), never of rank, worker or order."""

from __future__ import annotations

import hashlib
from enum import Enum

import numpy as np


class Draw(Enum):
    """What is drawn. Each has a stream of its own, so that one more draw of one kind never shifts another kind."""

    turn = "turn"
    """which chunk of a conversation is denoised"""
    flow = "flow"
    """noise and flow time"""
    augment = "augment"


def stream(seed: int, epoch: int, key: str, draw: Draw) -> np.random.Generator:
    """The random generator of one kind of draw for one sample in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{draw.value}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
