"""Windows of steps, and lines that survive a stop: none twice, none missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flagscale_vla.data.plan import Given
from flagscale_vla.records import LossSums, Progress
from flagscale_vla.train.metrics import (
    Line,
    StepRecord,
    append_line,
    close_window,
    last_losses,
    read_lines,
    truncate_lines,
)


def step_record(step: int, *, ce: float = 8.0, labels: int = 4, values: int = 0) -> StepRecord:
    return StepRecord(
        progress=Progress(step=step, packs=step, samples=3 * step, tokens=80 * step),
        losses=LossSums(ce=torch.tensor(ce), flow=torch.tensor(6.0), num_labels=labels, num_action_values=values),
        lr_share=0.1 * step,
        grad_norm=float(step),
        samples=3,
        tokens=80,
        quarantined=1,
        seconds=0.5,
        given={"robots": Given(samples=3 * step, tokens=80 * step, passes=0.1 * step)},
    )


def line(step: int, *, steps: int = 1, text: float | None = 1.0) -> Line:
    window = close_window([step_record(step)], row_tokens=100, memory_gib=1.0)
    return Line(
        **{**{name: window.__getattribute__(name) for name in Line.__slots__}, "steps": steps, "text_loss": text}
    )


def test_a_window_divides_sums_by_counts_and_keeps_the_last_steps_place() -> None:
    closed = close_window([step_record(1, ce=8.0, labels=4), step_record(2, ce=2.0, labels=1)], 100, 1.0)
    assert (closed.step, closed.steps, closed.samples, closed.tokens) == (2, 2, 6, 160)
    assert closed.text_loss == 2.0
    assert closed.flow_loss is None
    assert closed.grad_norm == 1.5
    assert closed.useful_tokens_per_second == 160.0
    assert closed.samples_per_second == 6.0
    assert closed.padding_share == pytest.approx(0.2)
    assert closed.sources == {"robots": {"samples": 6, "tokens": 160, "passes": 0.2}}


def test_lines_past_the_restored_step_and_half_lines_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_line(path, line(step))
    with path.open("a") as file:
        file.write('{"step": 4, "ste')
    assert [each.step for each in read_lines(path)] == [1, 2, 3]
    truncate_lines(path, 2)
    append_line(path, line(3))
    assert [each.step for each in read_lines(path)] == [1, 2, 3]


def test_nothing_is_read_or_cut_where_there_is_nothing(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "metrics.jsonl") == []
    truncate_lines(tmp_path / "metrics.jsonl", 0)
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_summary_losses_are_means_of_the_last_tenth() -> None:
    lines = [line(step, steps=10, text=float(step)) for step in range(10, 210, 10)]
    text, flow = last_losses(lines)
    assert text == 195.0
    assert flow is None
    assert last_losses([line(1, text=3.0)]) == (3.0, None)
    assert last_losses([]) == (None, None)
