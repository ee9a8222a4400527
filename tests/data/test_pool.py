"""Jobs in processes: every result comes once, and nothing outlives whoever wanted it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from functools import partial

import pytest

from flagscale_vla.data.pool import map_jobs

LONG = 60.0


def work(offset: int, job: int) -> int:
    """A number; or a long sleep for 1, an error for 2, and a sudden end for 3."""
    if job == 1:
        time.sleep(LONG)
    if job == 2:
        raise ValueError("two")
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return offset + job


@pytest.mark.parametrize("processes", [1, 2])
def test_every_result_comes_once(processes: int) -> None:
    jobs = range(10, 30)
    done = list(map_jobs(partial(work, 100), jobs, processes))
    assert sorted(done) == [100 + job for job in jobs]
    assert processes == 2 or done == sorted(done)


def test_an_error_ends_the_others() -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match="two"):
        list(map_jobs(partial(work, 0), [1, 2, 4], 2))
    with pytest.raises(OSError, match="a process died"):
        list(map_jobs(partial(work, 0), [1, 3], 2))
    assert time.monotonic() - begin < LONG / 2
    assert not multiprocessing.active_children()


def test_whoever_stops_listening_ends_the_others() -> None:
    begin = time.monotonic()
    results = map_jobs(partial(work, 0), [1, 4], 2)
    assert next(results) == 4
    results.close()
    assert time.monotonic() - begin < LONG / 2
    assert not multiprocessing.active_children()
