"""Learning the codes: steps over drawn chunks, saved on the way, the same whatever interrupts them."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flagscale_vla.action.fitter import Fitter
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.data.actions import Chunks, RobotChunks
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.robots.layout import parts_of
from flagscale_vla.train.interrupt import Interrupt
from flagscale_vla.train.report import METRICS
from flagscale_vla.train.saves import clean
from flagscale_vla.train.tokenizer_data import FitData
from flagscale_vla.train.tokenizer_metrics import FitStep, append_fit_line, close_fit_window, truncate_fit_lines
from flagscale_vla.train.tokenizer_saves import check_chunks, newest_state, save_state, state_digest

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


def fit_codec(run: TokenizerRun, data: FitData, topology: Topology) -> tuple[OmniSat, int]:
    """Make the steps that are left, from the newest checkpoint or from the start.

    Returns:
        The tokenizer and the steps made: fewer than were asked for where a signal stopped the fit.

    Raises:
        ConfigError: too few chunks for the codebooks, or a checkpoint of other chunks.
        ValueError: a loss is no longer a number, or ranks no longer agree.
    """
    check_enough(run, data)
    fitter = Fitter(
        config=run.codec,
        embodiments=data.embodiments,
        statistics=data.statistics,
        horizon=run.horizon,
        seed=run.seed,
        sum_ranks=topology.add_up,
    )
    samples = data.train.digest()
    step = resume(run, fitter, samples, topology)
    if step == 0:
        values, valid, starts = tensors_of(data.train.choose(run.fit.start_chunks).robots)
        fitter.begin(values, valid, starts)
    step = _make_steps(run, data.train, topology, fitter, step, samples)
    return fitter.tokenizer(), step


def check_enough(run: TokenizerRun, data: FitData) -> None:
    """Refuse more codes than there are different things to begin them from.

    Raises:
        ConfigError: naming the kind of group.
    """
    check_kinds(run, data)
    start = data.train.choose(run.fit.start_chunks)
    for name, config in run.codec.kinds().items():
        found = sum(
            len(chunks) * sum(part.kind.value == name for part in parts_of(data.embodiments[robot]))
            for robot, chunks in start.robots.items()
        )
        if 0 < found < config.codes:
            raise ConfigError(
                f"codec.{name}.codes={config.codes}: there are {found} chunks to start a codebook from, too few. "
                f"This would pass: codec.{name}.codes={found}; or more shards, or a larger fit.start_chunks"
            )


def check_kinds(run: TokenizerRun, data: FitData) -> None:
    """Refuse to leave out all robots with groups of some kind: nothing could code these.

    Raises:
        ConfigError: naming the kind and the robot.
    """
    fitted = {part.kind for name in data.train.robots for part in parts_of(data.embodiments[name])}
    for name, robot in data.embodiments.items():
        lacking = [part.kind.value for part in parts_of(robot) if part.kind not in fitted]
        if lacking:
            left = run.robots_left_out
            raise ConfigError(
                f"robots_left_out={left}: no robot that is fitted on has a group of kind {lacking[0]}, as {name!r} has."
                f" This would pass: robots_left_out={[other for other in left if other != name]}"
            )


def resume(run: TokenizerRun, fitter: Fitter, samples: str, topology: Topology) -> int:
    """Load the newest sound checkpoint; returns the step that it is after, 0 where there is none.

    Raises:
        ConfigError: it was fitted on other chunks, or every checkpoint is damaged.
    """
    if topology.is_writer:
        clean(Path(run.output))
        # Puts damaged ones aside before the others look.
        newest_state(Path(run.output))
    topology.barrier()
    found = newest_state(Path(run.output))
    if found is None:
        return 0
    folder, state = found
    check_chunks(run, folder, samples)
    fitter.load_state(state)
    return int(folder.name.removeprefix("step_"))


def _make_steps(run: TokenizerRun, chunks: Chunks, topology: Topology, fitter: Fitter, step: int, samples: str) -> int:
    with FitReport(run, step, writes=topology.is_writer) as report, Interrupt() as interrupt:
        stop = False
        while step < run.fit.steps and not stop:
            began = time.perf_counter()
            values, valid, starts = tensors_of(share_of_step(run, chunks, step, topology))
            figures = fitter.step(values, valid, step, starts)
            check_finite(figures, step + 1)
            step += 1
            report.step(FitStep(step=step, figures=figures, seconds=time.perf_counter() - began))
            stop = topology.any(interrupt.asked)
            if stop or step % run.checkpoint.every == 0 or step == run.fit.steps:
                report.close_window()
                save(run, step, fitter, samples, topology)
    return step


def draw_rows(seed: int, step: int, batch: int, total: int) -> NDArray[np.int64]:
    """The chunks of a step, i64[batch] in [0, total): a function of these arguments alone, with repeats."""
    key = hashlib.blake2b(f"{seed}/{step}/chunks".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.integers(total, size=batch)


def share_of_step(run: TokenizerRun, chunks: Chunks, step: int, topology: Topology) -> dict[str, RobotChunks]:
    """The chunks of a step that this process takes."""
    rows = draw_rows(run.seed, step, run.fit.batch, len(chunks))
    return chunks.take(rows[topology.rank :: topology.world_size])


def tensors_of(chunks: Mapping[str, RobotChunks]) -> tuple[Tensors, Tensors, Tensors]:
    """Values f32[n, H, A0], validity bool[n, H] and states f32[n, S0] before them, by robot."""
    values = {name: torch.from_numpy(np.array(robot.values)) for name, robot in chunks.items()}
    valid = {name: torch.from_numpy(np.array(robot.valid)) for name, robot in chunks.items()}
    starts = {name: torch.from_numpy(np.array(robot.starts)) for name, robot in chunks.items()}
    return values, valid, starts


def check_finite(figures: dict[str, float], step: int) -> None:
    """Stop before a step that went wrong is saved.

    Raises:
        ValueError: naming the step and the figures.
    """
    wrong = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(
            f"step {step}: {' and '.join(wrong)}. Nothing of this step was saved; lower codec.lr. The same command "
            "goes on from the newest checkpoint"
        )


def save(run: TokenizerRun, step: int, fitter: Fitter, samples: str, topology: Topology) -> None:
    """Save the state, which must be the same in every process.

    Raises:
        ValueError: it is not.
    """
    state = fitter.state()
    # 32 bits of the digest, whose sums a float64 holds exactly.
    own = float(int(state_digest(state)[:8], 16))
    differs = topology.all_reduce_sum([own])[0] != own * topology.world_size
    if topology.any(differs):
        raise ValueError(f"step {step}: the codec is no longer the same in every process. Nothing of it was saved")
    if topology.is_writer:
        logger.info("saved %s", save_state(run, step, state, samples))
    topology.barrier()


class FitReport:
    """Progress bar and lines of a fit; only the writer's does anything."""

    def __init__(self, run: TokenizerRun, step: int, *, writes: bool) -> None:
        self.run, self.begin, self.writes = run, step, writes
        self.path = Path(run.output) / METRICS
        self._window: list[FitStep] = []
        self._open = ExitStack()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if not self.writes:
            return self
        if self.begin:
            logger.info("going on after step %d of %d", self.begin, self.run.fit.steps)
        truncate_fit_lines(self.path, self.begin)
        total = self.run.fit.steps
        self._bar = tqdm(total=total, initial=self.begin, unit="step", desc="fit", disable=not sys.stderr.isatty())
        self._open.callback(self._bar.close)
        if not self._bar.disable:
            self._open.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def step(self, step: FitStep) -> None:
        """Take in a step; every `report.every` steps a line is written."""
        if not self.writes:
            return
        self._window.append(step)
        self._bar.update()
        if step.step % self.run.report.every == 0:
            self.close_window()

    def close_window(self) -> None:
        """Write the line of the steps since the last one, if any."""
        if not self._window:
            return
        line = close_fit_window(self._window, self.run.fit.batch)
        self._window = []
        append_fit_line(self.path, line)
        words = ", ".join(f"{name} {value:.4g}" for name, value in line.figures.items())
        self._bar.set_postfix_str(words)
        if self._bar.disable:
            logger.info("step %d/%d, %s, %.0f chunks/s", line.step, self.run.fit.steps, words, line.chunks_per_second)
