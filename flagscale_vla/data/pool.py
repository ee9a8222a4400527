"""Processes that do jobs and end with the process that started them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from flagscale_vla.data.workers import fork_server

Job = TypeVar("Job")
Done = TypeVar("Done")

_work: list[Callable[[Any], Any]] = []
"""What this process does; sent once, however many jobs follow."""


def map_jobs(work: Callable[[Job], Done], jobs: Iterable[Job], processes: int) -> Iterator[Done]:
    """Do every job; results come as they are ready. One process works right here, in the order of the jobs.

    Args:
        work: picklable, as a function of a module or a `partial` of one.

    Raises:
        OSError: a process was killed from outside, or ran out of memory.
        Exception: the first error of a job; the other processes are ended.
    """
    if processes == 1:
        yield from map(work, jobs)
        return
    yield from map_in_processes(work, jobs, processes, fork_server(), _change_nothing)


def map_in_processes(
    work: Callable[[Job], Done],
    jobs: Iterable[Job],
    processes: int,
    context: BaseContext,
    prepare: Callable[[], None],
) -> Iterator[Done]:
    """Do every job in processes of a start method, also where it is one; as `map_jobs`.

    Args:
        prepare: what a fresh process does first.

    Raises:
        OSError: a process was killed from outside, or ran out of memory.
    """
    others, finished = set(multiprocessing.active_children()), False
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(work, prepare)) as pool:
        futures: list[Future[Done]] = [pool.submit(_do, job) for job in jobs]
        # One more makes the executor look at all processes: else it would not notice the end of the last one (3.11).
        pool.submit(int)
        try:
            for future in as_completed(futures):
                yield future.result()
            finished = True
        except BrokenProcessPool as error:
            raise OSError("a process died; was it killed, or is the memory full?") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if not finished:
                # Ctrl-C or an error: nobody wants what is being done, which may take minutes.
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                    process.join()


def _change_nothing() -> None:
    """A process needs no more."""


def _start_worker(work: Callable[[Any], Any], prepare: Callable[[], None]) -> None:
    """Prepare a fresh process: Ctrl-C is left to the parent, whose end is this one's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger().setLevel(logging.WARNING)
    threading.Thread(target=_follow_parent, daemon=True).start()
    prepare()
    _work[:] = [work]


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(job: Any) -> Any:
    return _work[0](job)
