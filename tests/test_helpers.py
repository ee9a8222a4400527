"""`run_ranks` returns by rank, and a rank that fails or hangs ends the others."""

from __future__ import annotations

import time

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from tests.helpers import run_ranks

pytestmark = pytest.mark.ranks


def add_ranks(rank: int, offset: int) -> torch.Tensor:
    """The sum of (rank + offset) over all ranks, by gloo; i64[1]."""
    torch.distributed.init_process_group("gloo")
    value = torch.tensor([rank + offset])
    torch.distributed.all_reduce(value)
    return value


def fail_on_one(rank: int) -> None:
    """Rank 1 fails while rank 0 would wait for ever."""
    if rank == 1:
        raise ValueError("rank 1 has no data")
    time.sleep(600)


def test_every_rank_answers_by_rank() -> None:
    assert [value.item() for value in run_ranks(add_ranks, 2, 10)] == [21, 21]


def test_a_failure_shows_its_trace_and_ends_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(ProcessRaisedException, match=r"(?s)in fail_on_one.*rank 1 has no data"):
        run_ranks(fail_on_one, 2)
    assert time.monotonic() - start < 60


def test_a_hang_is_ended() -> None:
    with pytest.raises(TimeoutError, match="1 ranks did not finish"):
        run_ranks(fail_on_one, 1, timeout_s=6)
