"""Processes that step worlds: spawned, one renderer and one world each."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flagscale_vla.data.pool import map_in_processes
from flagscale_vla.sim.worlds.backend import choose_any_backend, choose_backend
from flagscale_vla.sim.worlds.tasks import make_world
from flagscale_vla.sim.worlds.world import World

Job = TypeVar("Job")
Done = TypeVar("Done")

_open: dict[tuple[str, int], World] = {}
"""The one world this process holds."""


def map_jobs(work: Callable[[Job], Done], jobs: Iterable[Job], processes: int, *, draw: bool) -> Iterator[Done]:
    """Do every job in spawned processes; results come as they are ready. `work` is a function of a module.

    Args:
        draw: whether the worlds show pictures, so that a renderer must work.

    Raises:
        OSError: a process was killed from outside, or ran out of memory, or no renderer works.
        Exception: the first error of a job; the other processes are ended.
    """
    if draw:
        choose_backend()
    else:
        choose_any_backend()
    yield from map_in_processes(work, jobs, processes, multiprocessing.get_context("spawn"), prepare_worker)


def prepare_worker() -> None:
    """Draw in one thread where there is no GPU, and keep libraries' warnings away from the progress bar."""
    os.environ.setdefault("LP_NUM_THREADS", "1")
    warnings.simplefilter("ignore", FutureWarning)


def open_world(task: str, image_pixels: int) -> World:
    """The world of a task; the one this process held before is closed if it is another."""
    key = (task, image_pixels)
    if key not in _open:
        close_world()
        _open[key] = make_world(task, image_pixels)
    return _open[key]


def close_world() -> None:
    """Close the world this process holds, if any."""
    while _open:
        _open.popitem()[1].close()
