"""Where processes that read data come from."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = ["flagscale_vla.data.apart", "flagscale_vla.data.loader"]
"""What the server imports: it leaves the process group, then has the readers at hand."""


def fork_server() -> ForkServerContext:
    """A start method whose server process imports the readers once and nothing else.

    Forking the training process itself would copy its process group's threads and locks in mid-flight.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
