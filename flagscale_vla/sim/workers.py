"""Processes that step worlds: spawned, one renderer and one world each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

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
        Exception: the first error of a job; jobs that have not begun are dropped.
    """
    if draw:
        choose_backend()
    else:
        choose_any_backend()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=start_worker, initargs=(os.getpid(),)) as pool:
        futures: list[Future[Done]] = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise OSError("a simulator process died; was it killed, or is the memory full?") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def start_worker(parent: int) -> None:
    """Prepare a fresh process: software rendering in one thread, Ctrl-C left to the parent."""
    os.environ.setdefault("LP_NUM_THREADS", "1")
    os.environ["FLAGSCALE_VLA_PARENT"] = str(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger().setLevel(logging.WARNING)
    # Of libraries to each other; they would break the progress bar.
    warnings.simplefilter("ignore", FutureWarning)


def check_parent() -> None:
    """Stop a worker whose parent is gone.

    Raises:
        SystemExit: the process that started this one has ended.
    """
    parent = os.environ.get("FLAGSCALE_VLA_PARENT")
    if parent is not None and os.getppid() != int(parent):
        raise SystemExit(1)


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
