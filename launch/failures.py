"""What a rank that fails leaves behind, and what is told of it: once, by the process that started the ranks."""

from __future__ import annotations

import builtins
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, ProcessFailure, record

STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
"""Exit statuses of a rank that a signal has made save and stop, or has ended before it had begun."""
PR_SET_PDEATHSIG = 1
"""Linux's prctl option: the signal sent to a process when its parent dies (linux/prctl.h)."""
USERS_ERRORS = ("ConfigError", "BadSampleError")
"""Our own errors that say enough without a trace."""


class LeaveToStarter(ErrorHandler):
    """Writes an error where the starter looks for it, and ends the rank without a word."""

    def record_exception(self, e: BaseException) -> None:
        super().record_exception(e)
        raise SystemExit(1) from e


def run_as_rank(job: Callable[[], None]) -> None:
    """Do a rank's job. With FLAGSCALE_VLA_TRACE set, a rank that fails prints its own trace too."""
    # Where the starter is killed outright the ranks save and stop, instead of training on with nobody to tell.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    handler = ErrorHandler() if os.environ.get("FLAGSCALE_VLA_TRACE") else LeaveToStarter()
    record(job, error_handler=handler)()


def tell_failure(failures: Mapping[int, ProcessFailure], processes: int) -> str | int:
    """What to exit with: a line about the rank that failed first, or a status where ranks only stopped.

    The other ranks often fail because the first one is gone. An error that is not the user's comes with its trace.
    """
    failed = {rank: failure for rank, failure in failures.items() if failure.exitcode not in STOPPED}
    if not failed:
        return 128 + signal.SIGTERM
    rank = min(failed, key=lambda number: failed_at(failed[number]))
    # torch's types promise a string; what `record` leaves is this.
    message: Any = failed[rank].message
    begin = f"rank {rank} of {processes} failed: "
    if isinstance(message, dict):
        text = str(message["message"])
        trace = "" if is_users(text) else f"{message['extraInfo']['py_callstack']}\n"
        return f"{trace}{begin}{text}"
    status = failed[rank].exitcode
    return begin + (message if status < 0 else f"exit status {status}; what it printed is above")


def failed_at(failure: ProcessFailure) -> int:
    """When a rank failed, in nanoseconds; those that left no word come last."""
    file = Path(failure.error_file)
    return file.stat().st_mtime_ns if file.is_file() else sys.maxsize


def is_users(text: str) -> bool:
    """Whether `NAME: message` is about a setting or an input, and so says enough."""
    name = text.partition(":")[0]
    kind = vars(builtins).get(name)
    return name in USERS_ERRORS or (isinstance(kind, type) and issubclass(kind, (ValueError, OSError)))
