"""Replays for the reader: the table in the log, and `report.html`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flagscale_vla.reports.pages import figure_uri, write_report
from flagscale_vla.sim.rollout import Attempt, Outcome
from flagscale_vla.sim.scores_report import share

logger = logging.getLogger(__name__)

WAYS = {"replay_success": "open loop", "chunks_success": "asked anew at each chunk"}


def log_table(figures: Mapping[str, Any]) -> None:
    """Print what is kept per task and pooled."""
    logger.info("%-34s %8s %6s %6s %6s %6s %10s", "task", "raw", "kept", "late", "lost", "error", "by chunks")
    for task, row in figures["per_task"].items():
        counts = [row[key] for key in ("raw_successes", "kept", "late", "lost", "errors")]
        logger.info("%-34s %8d %6d %6d %6d %6d %10s", task, *counts, share(row["chunks_success"]))
    for name in known_ways(figures):
        logger.info(
            "%s keeps %s of the raw replay's successes, %s; %.0f %% interval %.3f to %.3f",
            figures["kind"],
            thousandths(figures[name]),
            WAYS[name],
            100 * figures["confidence"],
            figures[f"{name}_low"],
            figures[f"{name}_high"],
        )


def known_ways(figures: Mapping[str, Any]) -> list[str]:
    """The ways that were played, and had something to keep."""
    return [name for name in WAYS if figures[name] is not None]


def report(folder: Path, figures: Mapping[str, Any], attempts: Sequence[Attempt]) -> Path:
    """Write `report.html`: what is kept, per task and simulator, and what went wrong."""
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
    rows = {name: [row_of(key, row) for key, row in figures[name].items()] for name in ("per_task", "per_simulator")}
    values = {"figures": {**figures, **row_of("all", figures)}, "rows": rows, "errors": errors, "bars": bars(figures)}
    return write_report(folder, "replay.html.j2", values)


def row_of(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its shares as text."""
    shares = {key: thousandths(value) for key, value in row.items() if "_success" in key and key != "raw_successes"}
    return {"name": name, **row, **shares}


def thousandths(value: float | None) -> str:
    """A share as text; a dash where it is unknown."""
    return "-" if value is None else f"{value:.3f}"


def bars(figures: Mapping[str, Any]) -> str:
    """What is kept of each task, both ways, with intervals."""
    rows = figures["per_task"]
    figure = Figure(figsize=(9, 0.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(known_ways(figures)):
        known = [(at, row) for at, row in enumerate(rows.values()) if row[name] is not None]
        middles = [row[name] for _, row in known]
        sides = [
            [row[name] - row[f"{name}_low"] for _, row in known],
            [row[f"{name}_high"] - row[name] for _, row in known],
        ]
        heights = [at + 0.2 * (2 * place - 1) for at, _ in known]
        axes.errorbar(middles, heights, xerr=sides, fmt="os"[place], markersize=4, capsize=2, label=WAYS[name])
    axes.set_yticks(range(len(rows)), rows.keys(), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("successes kept")
    if known_ways(figures):
        axes.legend(fontsize=8, loc="lower left")
    return figure_uri(figure)
