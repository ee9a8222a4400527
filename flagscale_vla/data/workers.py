"""Where processes that read data come from."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

import numpy as np

PRELOADED = ["flagscale_vla.data.apart", "flagscale_vla.data.loader"]
"""What the server imports: it leaves the process group, then has the readers at hand."""


KEPT_BYTES = 31 << 20
"""Below glibc's largest threshold, 32 MiB."""


def keep_memory(_worker: int = 0) -> None:
    """Let this process keep what it frees for its next picture, where glibc would give it back and fault it in again.

    The size of the largest block that was freed so far says what is kept (mallopt(3), M_MMAP_THRESHOLD).
    """
    block = np.empty(KEPT_BYTES, np.uint8)
    del block


def fork_server() -> ForkServerContext:
    """A start method whose server process imports the readers once and nothing else.

    Forking the training process itself would copy its process group's threads and locks in mid-flight.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
