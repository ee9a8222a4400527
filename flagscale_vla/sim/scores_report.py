"""An evaluation for the reader: the table in the log, and `report.html` with pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flagscale_vla.reports.pages import data_uri, write_report
from flagscale_vla.sim.rollout import Attempt, Outcome

logger = logging.getLogger(__name__)


def log_table(figures: Mapping[str, Any]) -> None:
    """Print the rates per task and pooled."""
    logger.info("%-34s %8s %8s %6s %8s %6s", "task", "success", "failure", "error", "expert", "zero")
    for task, row in figures["per_task"].items():
        logger.info(
            "%-34s %8d %8d %6d %8s %6s",
            task,
            row["successes"],
            row["failures"],
            row["errors"],
            share(row["expert_success_mean"]),
            share(row["floor_success_mean"]),
        )
    logger.info(
        "success %s, %.0f %% interval %.2f to %.2f, over %d episodes, %d of them errors; expert %s, zero action %s",
        share(figures["success_mean"]),
        100 * figures["confidence"],
        figures["success_low"],
        figures["success_high"],
        figures["episodes"],
        figures["errors"],
        share(figures["expert_success_mean"]),
        share(figures["floor_success_mean"]),
    )
    logger.info("open-loop error over that of the mean action: %s", share(figures["open_loop_error_ratio"]))


def report(folder: Path, figures: Mapping[str, Any], attempts: Sequence[Attempt]) -> Path:
    """Write `report.html`: the table, strips and videos of filmed episodes, and what went wrong."""
    films = [film_row(folder, attempt) for attempt in attempts if attempt.trial.film is not None]
    errors = [
        {
            "task": attempt.trial.task,
            "episode": attempt.trial.number,
            "controller": attempt.trial.controller.value,
            "message": attempt.message,
        }
        for attempt in attempts
        if attempt.outcome is Outcome.error
    ]
    rows = [row | {"task": task, **shares(row)} for task, row in figures["per_task"].items()]
    values = {
        "figures": dict(figures) | shares(figures),
        "rows": rows,
        "films": sorted((film for film in films if film), key=lambda film: film["video"]),
        "errors": errors,
    }
    return write_report(folder, "evaluate.html.j2", values)


def shares(row: Mapping[str, Any]) -> dict[str, str]:
    """The means of a row as text."""
    return {key: share(value) for key, value in row.items() if key.endswith(("_mean", "_ratio", "_low", "_high"))}


def share(value: float | None) -> str:
    """A share as text; a dash where it is unknown."""
    return "-" if value is None else f"{value:.2f}"


def film_row(folder: Path, attempt: Attempt) -> dict[str, Any] | None:
    """What the report shows of a filmed episode; None where it ended before anything was seen."""
    path = attempt.trial.film
    if path is None or not path.is_file():
        return None
    return {
        "task": attempt.trial.task,
        "instruction": attempt.instruction,
        "outcome": attempt.outcome.value,
        "steps": attempt.steps,
        "video": path.relative_to(folder).as_posix(),
        "strip": data_uri(path.with_suffix(".png").read_bytes()),
    }
