"""CPU time of processes that may be idle, busy ahead of what they are asked for, or another program's (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
CALM = 0.3
"""Seconds without work after which a process has nothing more to do."""
LEAST = 0.015
"""Seconds of CPU time in which a process only waits."""
PARENT, USER, SYSTEM = 1, 11, 12
"""Fields of /proc/PID/stat behind the command's name (proc_pid_stat(5))."""


def read_stat(pid: int) -> list[str]:
    """Fields of a process behind its name; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_seconds(pids: set[int]) -> float:
    """CPU time that these processes have used, in threads that have ended too; those that are gone used none."""
    stats = [fields for fields in map(read_stat, pids) if fields]
    return sum(int(fields[USER]) + int(fields[SYSTEM]) for fields in stats) / TICKS


def descendants(pid: int | None = None) -> set[int]:
    """All processes below one, or below this one."""
    stats = {int(folder.name): read_stat(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    parents = {child: int(fields[PARENT]) for child, fields in stats.items() if fields}
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
