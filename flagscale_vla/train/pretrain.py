"""Training a model: the job of a `TrainRun`.

Whatever stops a run, the same command goes on where its newest checkpoint stands, to the same weights bit for bit.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from flagscale_vla.config.checkpoints import CONFIG, RECIPE
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.data.faults import Quarantine
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.prepare import open_train_data
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.mcore.engine import Engine, StepResult
from flagscale_vla.mcore.platform import Platform, choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.records import PackedBatch, Progress
from flagscale_vla.train.changes import write_config
from flagscale_vla.train.checkpoint import (
    check_action_tokenizer,
    check_samples,
    check_tokenizer,
    find_init,
    newest_progress,
    prepare_output,
    resume,
    warm_start,
)
from flagscale_vla.train.interrupt import Interrupt
from flagscale_vla.train.metrics import StepRecord
from flagscale_vla.train.objective import objective
from flagscale_vla.train.report import Report, is_reported, tell_paths
from flagscale_vla.train.saves import Saves
from flagscale_vla.train.schedule import lr_share

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM
"""Exit status of a run that a signal stopped, as a shell would give it."""


def run(run: TrainRun) -> None:
    """Train, or go on training.

    Raises:
        ConfigError: settings, shards or checkpoints with which the run cannot be.
        ValueError: too many bad samples, or a loss that is no longer a number.
        SystemExit: a signal stopped the run, so what was to come after it must not begin.
    """
    output = Path(run.output)
    prepare_output(output)
    newest, progress = newest_progress(run)
    if newest and progress.step >= run.steps and is_reported(output, progress):
        logger.info("%s is finished: it has made %d of %d steps", output, progress.step, run.steps)
        tell_paths(output, newest)
        return
    init = find_init(run) if run.init and not newest else None
    platform = choose_platform(run.platform)
    with started(run, platform) as topology:
        progress = pretrain(run, platform, topology, init)
    if progress.step < run.steps:
        logger.warning("stopped at step %d of %d; the same command goes on from there", progress.step, run.steps)
        sys.exit(STOPPED)


@contextmanager
def started(run: TrainRun, platform: Platform) -> Iterator[Topology]:
    """The process groups of a run, left in good order; after an error they are not, for the others may be stuck."""
    topology = Topology.start(run.parallel, platform)
    yield topology
    topology.stop()


def pretrain(run: TrainRun, platform: Platform, topology: Topology, init: Path | None) -> Progress:
    """Make the steps that are left: from the run's newest checkpoint, or the weights in `init`, or random ones."""
    feed = open_feed(run, topology)
    build_chunk = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    engine = Engine(build_chunk, objective, run, topology, platform)
    newest, progress = resume(run, topology, engine)
    if newest is not None:
        check_action_tokenizer(newest, run, feed.recipe)
        check_samples(newest, run, feed)
        feed = replace(feed, recipe=Recipe.load(newest / RECIPE))
    elif init is not None:
        check_tokenizer(init, run, feed)
        begin_from(init, run, topology, engine)
    return train(run, platform, topology, engine, feed, progress)


def begin_from(init: Path, run: TrainRun, topology: Topology, engine: Engine) -> None:
    """Take a checkpoint's weights, and say what of the head was not there or not used."""
    for line in warm_start(init, run, topology, engine):
        if topology.is_writer:
            logger.warning("%s", line)


def train(
    run: TrainRun, platform: Platform, topology: Topology, engine: Engine, feed: Feed, progress: Progress
) -> Progress:
    """Make the steps after `progress`, saving on the way, at the end, and where a signal asks to stop."""
    with (
        open_loader(run, platform, topology, feed, progress) as loader,
        Report(run, feed, writes=topology.is_writer, device=platform.name, progress=progress) as report,
        Interrupt() as interrupt,
    ):
        saves = Saves(run, topology, engine, feed)
        stop = False
        while progress.step < run.steps and not stop:
            record = take_step(run, topology, engine, loader, report)
            progress = record.progress
            report.step(record)
            saves.poll()
            stop = topology.any(interrupt.asked)
            if not stop and progress.step % run.checkpoint.every == 0:
                report.close_window()
                saves.begin(progress)
        report.close_window()
        report.finish(saves.last(progress), saves.failed)
    return progress


def take_step(run: TrainRun, topology: Topology, engine: Engine, loader: Loader, report: Report) -> StepRecord:
    """Make the step after `report.progress`.

    Raises:
        ValueError: a loss or the gradient is not finite, or too many samples are bad.
    """
    before, began = report.progress, time.perf_counter()
    share = lr_share(
        before.step + 1,
        steps=run.steps,
        warmup_steps=run.optim.warmup_steps,
        final_share=run.optim.final_share,
    )
    batches = loader.take(run.num_microbatches)
    result = engine.train_step(batches, share)
    check_finite(result, before.step + 1, topology.rank, batches)
    seconds = time.perf_counter() - began
    if before.step == 0:
        report.show(batches)
    counts = [sum(len(batch.keys) for batch in batches), sum(batch.num_tokens for batch in batches)]
    samples, tokens, bad = topology.data_sum([*counts, loader.quarantined - report.refused])
    progress = Progress(
        step=before.step + 1,
        packs=loader.position.packs,
        era=loader.position.era,
        first=loader.position.first,
        samples=before.samples + samples,
        tokens=before.tokens + tokens,
    )
    return StepRecord(
        progress=progress,
        losses=result.losses,
        lr_share=share,
        grad_norm=result.grad_norm,
        samples=samples,
        tokens=tokens,
        quarantined=report.refused + bad,
        seconds=seconds,
        given=loader.given() if topology.is_writer else {},
    )


def check_finite(result: StepResult, step: int, rank: int, batches: Sequence[PackedBatch]) -> None:
    """Stop before a step that went wrong is saved.

    Raises:
        ValueError: naming the step and the samples that this rank gave to it.
    """
    figures = {
        "text loss": float(result.losses.ce),
        "flow loss": float(result.losses.flow),
        "gradient norm": result.grad_norm,
    }
    wrong = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        keys = ", ".join(key for batch in batches for key in batch.keys)
        raise ValueError(
            f"step {step}: {' and '.join(wrong)}. Nothing of this step was saved. Rank {rank} had given it: {keys}. "
            "Look at these samples, or lower optim.*.lr; the same command goes on from the newest checkpoint"
        )


def open_feed(run: TrainRun, topology: Topology) -> Feed:
    """What is trained on. The writer looks through the shards first; the others find what it has kept beside them."""
    if topology.is_writer:
        write_config(run, Path(run.output) / CONFIG)
        read_shards(run)
    topology.barrier()
    return read_shards(run)


def read_shards(run: TrainRun) -> Feed:
    """The samples of a run, their order and how they are made, from its shards.

    Raises:
        ConfigError: `data.epochs` gives fewer samples than the run needs.
    """
    recipe, sources = open_train_data(run.data, run.action, width=run.model.flow.width, vocab=run.model.language.vocab)
    feed = Feed(
        sources=sources,
        recipe=recipe,
        order=run.data,
        pack_length=run.data.pack_length,
        seed=run.seed,
        augment=True,
    )
    feed.check_epochs(run.steps, run.global_packs)
    return feed


def open_loader(run: TrainRun, platform: Platform, topology: Topology, feed: Feed, progress: Progress) -> Loader:
    """The rows of this data-parallel rank from where the run stands."""
    path = Path(run.output) / "quarantine" / f"rank_{topology.rank}.jsonl"
    return Loader(
        feed,
        dp_rank=topology.dp_rank,
        dp_size=topology.dp_size,
        position=Position(packs=progress.packs, era=progress.era, first=progress.first),
        workers=run.data.workers,
        pin=platform.is_gpu,
        quarantine=Quarantine(path, run.data.max_bad_share, run.data.max_bad_shard_share),
    )
