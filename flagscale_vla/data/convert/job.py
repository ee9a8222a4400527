"""The frame of every `convert_*` job: units in parallel, resumable, everything that is left out counted and listed."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.data.convert.converter import Converter, Refusal, Unit
from flagscale_vla.data.convert.report import conclude
from flagscale_vla.data.convert.unit import LOGS, UNFINISHED, Task, UnitLog, convert_unit, load_log, log_path
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.shards import SPLITS
from flagscale_vla.reports.outputs import CONFIG, SUMMARY, keep_settings
from flagscale_vla.reports.pages import REPORT

logger = logging.getLogger(__name__)

FREE = ("processes", "max_refused_share")
"""Settings that may differ between two starts of one run."""
FEW_ROWS = 100
"""So many rows count as having been seen at least, before a share of them is taken."""
SHOWN = 5
"""Refusals in an error's message."""


def convert(converter: Converter, run: ConvertRun) -> None:
    """Convert all units that are still missing, then write embodiments, the list of refusals, summary and report.

    Raises:
        ValueError: more than `max_refused_share` of the rows is refused, or the folder holds another dataset.
        OSError: a process died, or the folder cannot be written.
    """
    folder = Path(run.output)
    check_unused(folder)
    keep_settings(run, folder, free=FREE)
    tasks = plan_tasks(converter.units())
    check_folder(folder, tasks)
    tally = Tally(run.max_refused_share)
    missing = [task for task in tasks if not log_path(folder, task).is_file()]
    for task in tasks:
        if log_path(folder, task).is_file():
            tally.add(load_log(folder, task))
    begin, known = time.perf_counter(), tally.samples
    convert_missing(converter, run, missing, tally)
    if missing or not (folder / SUMMARY).is_file():
        logs = [load_log(folder, task) for task in tasks]
        conclude(folder, converter.embodiments(), logs, tally.samples - known, time.perf_counter() - begin)
    logger.info("shards: %s", folder.resolve())
    logger.info("report: %s", (folder / REPORT).resolve())
    logger.info("summary: %s", (folder / SUMMARY).resolve())


def plan_tasks(units: Sequence[Unit]) -> list[Task]:
    """Every unit with the number of its shard.

    Raises:
        ValueError: two units have one name, or there is none.
    """
    names = [unit.name for unit in units]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or not units:
        raise ValueError(f"two units are called {twice[0]!r}" if twice else "the dataset holds nothing to convert")
    counts = dict.fromkeys(SPLITS, 0)
    tasks = []
    for unit in units:
        tasks.append(Task(unit=unit, shard=counts[unit.split]))
        counts[unit.split] += 1
    return tasks


def check_unused(folder: Path) -> None:
    """Refuse a folder with shards that no such run has begun to write.

    Raises:
        ValueError: naming one of them.
    """
    shards = [] if (folder / CONFIG).is_file() else sorted(folder.glob("*.tar"))
    if shards:
        raise ValueError(f"{shards[0]} was not written by this job: give another output=")


def check_folder(folder: Path, tasks: Sequence[Task]) -> None:
    """Refuse a folder with logs of units that are none of this run's.

    Raises:
        ValueError: naming one of them.
    """
    strangers = sorted(set((folder / LOGS).glob("*.json")) - {log_path(folder, task) for task in tasks})
    if strangers:
        raise ValueError(f"{strangers[0]} belongs to no unit of the dataset: give another output= to start afresh")


def convert_missing(converter: Converter, run: ConvertRun, missing: Sequence[Task], tally: Tally) -> None:
    """Convert units in parallel and count what became of them.

    Raises:
        ValueError: more than `max_refused_share` of the rows is refused.
    """
    folder = Path(run.output)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    work = partial(convert_unit, converter, folder)
    with tqdm(total=len(missing), unit="shard", desc="convert", disable=not missing) as bar:
        for log in map_jobs(work, missing, min(run.processes, max(len(missing), 1))):
            tally.add(log)
            bar.set_postfix(samples=tally.samples, refused=tally.refused, refresh=False)
            bar.update()
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


class Tally:
    """Counts samples and refusals, and stops a run that refuses too much."""

    def __init__(self, max_refused_share: float) -> None:
        self.max_refused_share = max_refused_share
        self.samples = self.refused = 0
        self.examples: list[Refusal] = []

    def add(self, log: UnitLog) -> None:
        """Count a unit; as `count`."""
        self.count(log.samples, log.refused)

    def count(self, samples: int, refused: Sequence[Refusal]) -> None:
        """Count samples and refusals.

        Raises:
            ValueError: too much is refused; it shows the first refusals.
        """
        self.samples += samples
        self.refused += sum(refusal.rows for refusal in refused)
        self.examples += refused[: SHOWN - len(self.examples)]
        rows = self.samples + self.refused
        if self.refused > self.max_refused_share * max(rows, FEW_ROWS):
            lines = [f"{refusal.place}: {refusal.reason}" for refusal in self.examples]
            raise ValueError(
                f"{self.refused} of {rows} rows are refused, more than max_refused_share={self.max_refused_share} "
                "lets pass:\n  " + "\n  ".join(lines) + "\nMend the dataset, or give a larger share to go on"
            )
