"""What a fit measures while it goes: one line of `metrics.jsonl` per window of steps.

A window ends every `report.every` steps and at every checkpoint, so that a fit which goes on from a checkpoint writes
the lines that it would have written without a stop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FitStep:
    """One step of a fit."""

    step: int
    figures: Mapping[str, float]
    """losses and code use, as the fitter names them"""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FitLine:
    """One line of `metrics.jsonl`: a window of steps."""

    step: int
    """the window's last"""
    steps: int
    figures: dict[str, float]
    """means over the window"""
    chunks_per_second: float
    """over all processes"""


def close_fit_window(steps: Sequence[FitStep], batch: int) -> FitLine:
    """The line of a window of at least one step of `batch` chunks each."""
    names = steps[-1].figures.keys()
    return FitLine(
        step=steps[-1].step,
        steps=len(steps),
        figures={name: sum(step.figures[name] for step in steps) / len(steps) for name in names},
        chunks_per_second=batch * len(steps) / sum(step.seconds for step in steps),
    )


def append_fit_line(path: Path, line: FitLine) -> None:
    """Write one line, whole, before returning."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def read_fit_lines(path: Path) -> list[FitLine]:
    """The lines of a `metrics.jsonl`; a last one that a kill cut short is left out."""
    if not path.is_file():
        return []
    text = path.read_text()
    return [FitLine(**json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


def truncate_fit_lines(path: Path, step: int) -> None:
    """Drop lines of steps past `step`: they belong to steps that are about to be made again."""
    kept = [line for line in read_fit_lines(path) if line.step <= step]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(asdict(line)) + "\n" for line in kept))
    scratch.replace(path)
