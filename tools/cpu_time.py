"""CPU time of processes that may be idle, busy ahead of what they are asked for, or another program's (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path

NANO = 1e-9
CALM = 0.3
"""Seconds without work after which a process has nothing more to do."""
LEAST = 0.004
"""Seconds of CPU time in which a process only waits."""


def cpu_seconds(pids: set[int]) -> float:
    """CPU time that these processes have used, all threads; those that are gone used none."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return total * NANO


def descendants(pid: int | None = None) -> set[int]:
    """All processes below one, or below this one."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found, front = set[int](), {pid or os.getpid()}
    while front:
        front = {child for child, parent in parents.items() if parent in front} - found
        found |= front
    return found


def settle(pids: set[int]) -> None:
    """Wait until these processes have nothing more to do."""
    while True:
        before = cpu_seconds(pids)
        time.sleep(CALM)
        if cpu_seconds(pids) - before < LEAST:
            return
