"""Where processes that read data come from."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

READER_MODULE = "flagscale_vla.data.loader"


def fork_server() -> ForkServerContext:
    """A start method whose server process imports the readers once and nothing else.

    Forking the training process itself would copy its process group's threads and locks in mid-flight.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([READER_MODULE])
    return context
