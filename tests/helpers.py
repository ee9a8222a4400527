"""Run a function on several ranks at once, as tests of parallel code need."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch.distributed import TCPStore


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Call `fn(rank, *args)` in `world_size` new processes and return what each returned, by rank.

    Each process has one torch thread and finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its
    environment, so `torch.distributed.init_process_group("gloo")` works there; the group itself is left to `fn`.
    `fn` must be importable (a top-level function of its module), and `args` and results picklable.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the trace of the rank that failed; the others are ended.
        TimeoutError: when the ranks have not all finished after `timeout_s` seconds; all are ended.
    """
    # The parent holds the store on a port the system chose, as torchrun's agent does: no port can be lost to a race.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    with tempfile.TemporaryDirectory() as folder:
        ranks = torch.multiprocessing.start_processes(
            _run_rank, (fn, args, world_size, store.port, folder), nprocs=world_size, join=False, start_method="spawn"
        )
        _wait(ranks, timeout_s)
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


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


def _run_rank(rank: int, fn: Callable[..., Any], args: tuple[Any, ...], world_size: int, port: int, out: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        # The store is already there: join it instead of opening one on rank 0.
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    result = fn(rank, *args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    (Path(out) / str(rank)).write_bytes(pickle.dumps(result))
