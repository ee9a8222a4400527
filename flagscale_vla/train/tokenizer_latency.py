"""How long encoding and decoding take on one core."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.data.actions import Chunks, RobotChunks

BATCH = 256
"""Chunks encoded and decoded at once."""
REPEATS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Microseconds a chunk, in batches, a mean over robots of the median of repeats."""

    encode: float
    decode: float

    @property
    def both(self) -> float:
        """There and back."""
        return self.encode + self.decode


def measure_latency(tokenizer: ActionTokenizer, chunks: Chunks) -> Latency:
    """Time up to `BATCH` chunks of each robot, on one core and one torch thread."""
    with one_core():
        times = [_time_robot(tokenizer, robot) for robot in _first(chunks).values()]
    encode, decode = np.mean(times, axis=0)
    return Latency(encode=float(encode), decode=float(decode))


def _first(chunks: Chunks) -> Mapping[str, RobotChunks]:
    return {name: robot.take(np.arange(min(BATCH, len(robot)))) for name, robot in chunks.robots.items()}


def _time_robot(tokenizer: ActionTokenizer, chunks: RobotChunks) -> tuple[float, float]:
    """Microseconds a chunk to encode, and to decode; the first go, which fills caches, does not count."""
    horizon = chunks.values.shape[1]
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        codes = tokenizer.encode(chunks.robot, chunks.values, chunks.starts)
        middle = time.perf_counter()
        tokenizer.decode(chunks.robot, codes, horizon, chunks.starts)
        times.append((middle - begin, time.perf_counter() - middle))
    encode, decode = np.median(times[1:], axis=0) / len(chunks) * 1e6
    return float(encode), float(decode)


@contextmanager
def one_core() -> Iterator[None]:
    """While entered, all threads of this process share one core, and torch has one thread.

    On a CPU what stands in for CUDA looks at each call of torch; loaders, which encode, have none of it.
    """
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
