"""What a run measures: one record per step, one line of `metrics.jsonl` per window of steps.

A window ends every `report.every` steps and at every checkpoint, so a run that goes on from a checkpoint writes the
very lines that it would have written without a stop: each step is in exactly one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flagscale_vla.data.plan import Given
from flagscale_vla.records import LossSums, Progress

LAST_SHARE = 0.1
"""The summary's losses are means over this last share of the steps: one step's are too noisy to compare runs by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step, over all ranks."""

    progress: Progress
    """after the step"""
    losses: LossSums
    lr_share: float
    grad_norm: float
    """before clipping"""
    samples: int
    tokens: int
    """without padding"""
    quarantined: int
    """samples left out so far, since this start of the run"""
    seconds: float
    """from asking for the rows to the end of the step"""
    given: Mapping[str, Given]
    """what each source has given since the run began, bad samples among them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of `metrics.jsonl`: a window of steps."""

    step: int
    """the window's last"""
    steps: int
    """how many steps it holds"""
    text_loss: float | None
    """mean cross entropy per supervised token; None where there was none"""
    flow_loss: float | None
    """mean squared error per supervised action value; None where there was none"""
    lr_share: float
    """of the window's last step"""
    grad_norm: float
    """mean of the steps' global norms before clipping"""
    samples: int
    """since the run began"""
    tokens: int
    """since the run began, without padding"""
    quarantined: int
    seconds: float
    """spent in the window's steps; saving is not in it"""
    useful_tokens_per_second: float
    samples_per_second: float
    padding_share: float
    """share of the rows' tokens that is padding"""
    memory_gib: float
    """largest so far, on the process that writes"""
    sources: dict[str, dict[str, float]]
    """samples, tokens and passes of each source since the run began, bad samples among them"""


def close_window(steps: Sequence[StepRecord], row_tokens: int, memory_gib: float) -> Line:
    """The line of a window of at least one step, each of which ran `row_tokens` tokens, padding included."""
    last = steps[-1]
    seconds = sum(step.seconds for step in steps)
    tokens = sum(step.tokens for step in steps)
    losses = sum((step.losses for step in steps[1:]), start=steps[0].losses)
    return Line(
        step=last.progress.step,
        steps=len(steps),
        text_loss=float(losses.ce) / losses.num_labels if losses.num_labels else None,
        flow_loss=float(losses.flow) / losses.num_action_values if losses.num_action_values else None,
        lr_share=last.lr_share,
        grad_norm=sum(step.grad_norm for step in steps) / len(steps),
        samples=last.progress.samples,
        tokens=last.progress.tokens,
        quarantined=last.quarantined,
        seconds=seconds,
        useful_tokens_per_second=tokens / seconds,
        samples_per_second=sum(step.samples for step in steps) / seconds,
        padding_share=1.0 - tokens / (row_tokens * len(steps)),
        memory_gib=memory_gib,
        sources={name: asdict(given) for name, given in last.given.items()},
    )


def line_figures(line: Line) -> dict[str, float]:
    """Every figure of a line but its step, flat: those of sources as `sources/NAME/FIGURE`."""
    flat = {name: value for name, value in asdict(line).items() if name not in ("step", "sources")}
    parts = {f"sources/{name}/{key}": value for name, part in line.sources.items() for key, value in part.items()}
    return {name: value for name, value in (flat | parts).items() if value is not None}


def append_line(path: Path, line: Line) -> None:
    """Write one line, whole, before returning."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def read_lines(path: Path) -> list[Line]:
    """The lines of a `metrics.jsonl`; a last one that a kill cut short is left out."""
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    return [Line(**json.loads(line)) for line in whole.splitlines()]


def truncate_lines(path: Path, step: int) -> None:
    """Drop lines of steps past `step`: they belong to steps that are about to be made again."""
    kept = [line for line in read_lines(path) if line.step <= step]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(asdict(line)) + "\n" for line in kept))
    scratch.replace(path)


def last_losses(lines: Sequence[Line]) -> tuple[float | None, float | None]:
    """Text and flow loss over the last tenth of the steps: means of the lines in it, weighted by their steps."""
    if not lines:
        return None, None
    after = lines[-1].step * (1.0 - LAST_SHARE)
    last = [line for line in lines[:-1] if line.step > after] + [lines[-1]]
    text = [(line.text_loss, line.steps) for line in last if line.text_loss is not None]
    flow = [(line.flow_loss, line.steps) for line in last if line.flow_loss is not None]
    return weighted_mean(text), weighted_mean(flow)


def weighted_mean(values: Sequence[tuple[float, int]]) -> float | None:
    """Mean of (value, weight) pairs, None of none."""
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else None
