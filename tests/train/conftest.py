"""What holds for every test of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from megatron.core import parallel_state
from torch import distributed


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    """A test that ends in an error leaves no process group to the next one."""
    torch.set_num_threads(1)
    yield
    if distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()
