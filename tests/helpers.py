"""Run a function on several ranks at once, as tests of parallel code need."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch.distributed import TCPStore


@dataclass(frozen=True, slots=True)
class Job:
    """A call `fn(rank, *args)` in each of `world_size` processes; an error names the job."""

    name: str
    fn: Callable[..., Any]
    world_size: int
    args: tuple[Any, ...] = ()


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Call `fn(rank, *args)` in `world_size` new processes and return what each returned, by rank.

    Each process has one torch thread and finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its
    environment, so `torch.distributed.init_process_group("gloo")` works there; the group itself is left to `fn`.
    `fn` must be importable (a top-level function of its module), and `args` and results picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the trace of the rank that failed; the others are ended.
        TimeoutError: when the ranks have not all finished after `timeout_s` seconds; all are ended.
    """
    return run_jobs([Job(fn.__name__, fn, world_size, args)], timeout_s=timeout_s)[0]


def run_jobs(jobs: Sequence[Job], *, timeout_s: float = 120.0) -> list[list[Any]]:
    """Run jobs one after another in one pool of processes, each in the first `world_size` of them; as `run_ranks`.

    To start processes that import torch and Megatron-core takes longer than most jobs. Returns results by job and rank.
    """
    # The parent holds each job's store on a port the system chose, as torchrun's agent does: none is lost to a race.
    timeout = timedelta(seconds=timeout_s)
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout) for _ in jobs]
    ports = [store.port for store in stores]
    size = max(job.world_size for job in jobs)
    with tempfile.TemporaryDirectory() as folder:
        ranks = torch.multiprocessing.start_processes(
            _run_rank, (jobs, ports, folder), nprocs=size, join=False, start_method="spawn"
        )
        _wait(ranks, timeout_s)
        by_rank = [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]
    return [[by_rank[rank][place] for rank in range(job.world_size)] for place, job in enumerate(jobs)]


def _wait(ranks: Any, timeout_s: float) -> None:
    """Wait for every rank, or end them all."""
    end = time.monotonic() + timeout_s
    try:
        while not ranks.join(timeout=max(0.0, end - time.monotonic()), grace_period=1.0):
            if time.monotonic() >= end:
                raise TimeoutError(f"{len(ranks.processes)} ranks did not finish in {timeout_s:g} s")
    finally:
        for process in ranks.processes:
            if process.is_alive():
                process.kill()
                process.join()


def _run_rank(rank: int, jobs: Sequence[Job], ports: Sequence[int], out: str) -> None:
    torch.set_num_threads(1)
    pairs = zip(jobs, ports, strict=True)
    results = [_run_job(rank, job, port) if rank < job.world_size else None for job, port in pairs]
    (Path(out) / str(rank)).write_bytes(pickle.dumps(results))


def _run_job(rank: int, job: Job, port: int) -> Any:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(job.world_size),
        LOCAL_WORLD_SIZE=str(job.world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        # The store is already there: join it instead of opening one on rank 0.
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
        OMP_NUM_THREADS="1",
    )
    try:
        return job.fn(rank, *job.args)
    except BaseException as error:
        error.add_note(f"in job {job.name}")
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
