"""What a run tells while it goes and leaves behind: progress bar, lines, TensorBoard, W&B, page and summary.

Every rank holds a `Report`; only the writer's does anything. Nothing here changes what is trained.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.provenance import git_hash, package_versions
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.stored import flat_settings
from flagscale_vla.data.feed import Feed
from flagscale_vla.model.size import count_parameters
from flagscale_vla.records import PackedBatch, Progress
from flagscale_vla.reports.outputs import SUMMARY, replace_text, settings_yaml
from flagscale_vla.reports.pages import REPORT
from flagscale_vla.train.metrics import (
    Line,
    StepRecord,
    append_line,
    close_window,
    last_losses,
    line_figures,
    read_lines,
    truncate_lines,
)
from flagscale_vla.train.page import read_samples, write_page, write_samples
from flagscale_vla.train.pictures import sample_views

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SAMPLES = "first_step.json"
WANDB_ID = "wandb_id"
GIB = 2**30


class Report:
    """Takes each step's record; a context manager, for its sinks must be closed.

    Args:
        run: the settings.
        feed: what is trained on, to show samples of.
        writes: whether this process is the one that writes.
        device: a word for what is computed on.
        progress: where the run begins or goes on; lines past it are dropped from `metrics.jsonl`.
    """

    def __init__(self, run: TrainRun, feed: Feed, *, writes: bool, device: str, progress: Progress) -> None:
        self.run, self.feed, self.writes, self.device, self.progress = run, feed, writes, device, progress
        self.output = Path(run.output)
        self.refused = len(feed.faults)
        """samples that the index found unusable; the same on every rank"""
        self._window: list[StepRecord] = []
        self._open = ExitStack()
        self._tensorboard: SummaryWriter | None = None
        self._wandb: Any = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if not self.writes:
            return self
        if self.progress.step:
            logger.info("going on after step %d of %d", self.progress.step, self.run.steps)
        truncate_lines(self.output / METRICS, self.progress.step)
        if self.run.report.tensorboard:
            folder = str(self.output / "tensorboard")
            # Points past the restored step are hidden, as they are dropped from the lines.
            self._tensorboard = SummaryWriter(folder, purge_step=self.progress.step + 1)
            self._open.callback(self._tensorboard.close)
        if self.run.report.wandb:
            self._wandb = start_wandb(self.run)
            self._open.callback(self._wandb.finish)
        self._bar = tqdm(total=self.run.steps, initial=self.progress.step, unit="step", disable=not sys.stderr.isatty())
        self._open.callback(self._bar.close)
        if not self._bar.disable:
            self._open.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def show(self, batches: Sequence[PackedBatch]) -> None:
        """Keep a look at the first samples of the rows the model was given."""
        if self.writes:
            views = (view for batch in batches for view in sample_views(batch, self.feed))
            write_samples(self.output / SAMPLES, islice(views, self.run.report.samples))

    def step(self, record: StepRecord) -> None:
        """Take in a step; every `report.every` steps, and at the last one, a line is written."""
        self.progress = record.progress
        if not self.writes:
            return
        self._window.append(record)
        self._bar.update()
        if record.progress.step % self.run.report.every == 0 or record.progress.step == self.run.steps:
            self.close_window()

    def close_window(self) -> None:
        """Write the line of the steps since the last line, if any. A checkpoint calls this before it is saved."""
        if not self._window:
            return
        row_tokens = self.run.global_packs * self.run.data.pack_length
        line = close_window(self._window, row_tokens, memory_gib())
        self._window = []
        append_line(self.output / METRICS, line)
        self._bar.set_postfix_str(in_words(line))
        if self._bar.disable:
            logger.info("step %d/%d, %s", line.step, self.run.steps, in_words(line))
        self._send(line)

    def _send(self, line: Line) -> None:
        figures = line_figures(line)
        if self._tensorboard is not None:
            for name, value in figures.items():
                self._tensorboard.add_scalar(name, value, line.step)
        if self._wandb is not None:
            self._wandb.log(figures, step=line.step)

    def finish(self, checkpoint: Path, failed_saves: int) -> None:
        """Write `summary.json` and `report.html`, and say where everything is."""
        if not self.writes:
            return
        lines = read_lines(self.output / METRICS)
        summary = summarize(self.run, self.progress, lines, self.device, checkpoint)
        summary["failed_saves"] = failed_saves
        replace_text(self.output / SUMMARY, json.dumps(summary, indent=2) + "\n")
        done = self.progress.step >= self.run.steps
        write_page(
            self.output,
            remark=""
            if done
            else f"Stopped at step {self.progress.step} of {self.run.steps}; the same command goes on.",
            summary=summary,
            lines=lines,
            samples=read_samples(self.output / SAMPLES),
            config=settings_yaml(self.run),
        )
        tell_paths(self.output, checkpoint)


def is_reported(output: Path, progress: Progress) -> bool:
    """Whether the summary and the page of a run tell of where it stands."""
    path = output / SUMMARY
    return path.is_file() and (output / REPORT).is_file() and json.loads(path.read_text())["steps"] == progress.step


def tell_paths(output: Path, checkpoint: Path) -> None:
    """Log where a run's results are."""
    for name, path in (("checkpoint", checkpoint), ("report", output / REPORT), ("summary", output / SUMMARY)):
        logger.info("%-10s %s", name, path)


def summarize(run: TrainRun, progress: Progress, lines: list[Line], device: str, checkpoint: Path) -> dict[str, object]:
    """The figures of `summary.json`, flat.

    Losses are means over the last tenth of the steps (`last_losses`); rates and the share of padding are over the
    whole run, its first steps included, and leave out the time spent saving and reporting.
    """
    text_loss, flow_loss = last_losses(lines)
    seconds = sum(line.seconds for line in lines)
    row_tokens = progress.step * run.global_packs * run.data.pack_length
    versions = {f"{package.replace('-', '_')}_version": number for package, number in package_versions().items()}
    return {
        "steps": progress.step,
        "samples": progress.samples,
        "tokens": progress.tokens,
        "seconds": seconds,
        "useful_tokens_per_second": progress.tokens / seconds if seconds else 0.0,
        "samples_per_second": progress.samples / seconds if seconds else 0.0,
        "padding_share": 1.0 - progress.tokens / row_tokens if row_tokens else 0.0,
        "text_loss": text_loss,
        "flow_loss": flow_loss,
        "parameters": sum(count_parameters(run.model).values()),
        "quarantined": lines[-1].quarantined if lines else 0,
        "memory_gib": max((line.memory_gib for line in lines), default=0.0),
        "processes": run.parallel.world_size,
        "device": device,
        **versions,
        "git_hash": git_hash(),
        "checkpoint": str(checkpoint),
    }


def in_words(line: Line) -> str:
    """What the progress bar shows beside itself."""
    losses = [
        f"{name} {value:.4f}"
        for name, value in (("text", line.text_loss), ("flow", line.flow_loss))
        if value is not None
    ]
    rates = f"{line.useful_tokens_per_second:,.0f} tokens/s, {line.samples_per_second:.1f} samples/s"
    return f"{', '.join(losses)}, {rates}, {line.padding_share:.1%} padding"


def memory_gib() -> float:
    """Largest resident size of this process so far, in GiB."""
    # Linux counts it in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def start_wandb(run: TrainRun) -> Any:
    """A W&B run, the same one again where this output has begun one.

    Raises:
        ConfigError: W&B wants a login and there is none.
    """
    # Imported here: it is slow, and most runs do without.
    import wandb

    output = Path(run.output)
    path = output / WANDB_ID
    if not path.is_file():
        path.write_text(uuid4().hex)
    try:
        return wandb.init(
            project="flagscale_vla",
            name=output.name,
            id=path.read_text(),
            resume="allow",
            dir=str(output),
            config=flat_settings(run),
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise ConfigError(
            f"report.wandb=True: Weights & Biases cannot be reached ({error}). "
            "This would pass: `wandb login` before, WANDB_MODE=offline in the environment, or report.wandb=False"
        ) from error
