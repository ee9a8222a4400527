"""Job `replay_*`: expert episodes on unseen seeds, replayed as they were and through an action tokenizer."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from tqdm import tqdm

from flagscale_vla.config.replay import ReplayRun
from flagscale_vla.policy.client import Codec, open_codec
from flagscale_vla.reports.outputs import CONFIG, SUMMARY, replace_text, settings_yaml, write_summary
from flagscale_vla.reports.pages import REPORT
from flagscale_vla.sim.episodes_log import EpisodesLog
from flagscale_vla.sim.playback import Expert, expert_actions, play_chunks, play_codec, play_raw
from flagscale_vla.sim.replay_report import log_table, report
from flagscale_vla.sim.replay_scores import replay_figures
from flagscale_vla.sim.rollout import Attempt, Controller, Outcome, Play, Rules, Trial, play_trial
from flagscale_vla.sim.scores import score
from flagscale_vla.sim.workers import map_jobs
from flagscale_vla.sim.worlds.tasks import TASKS, check_installed, check_task

logger = logging.getLogger(__name__)

Opener = Callable[[], Codec]
"""Opens the codec in the process that calls it; picklable"""

_codecs: list[Codec] = []
"""The one codec this process has opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One episode, played in the ways that are still missing."""

    trials: tuple[Trial, ...]
    rules: Rules
    linger: int
    opener: Opener


def run(run: ReplayRun) -> None:
    """Replay expert episodes and write summary and report.

    Raises:
        ValueError: no such tokenizer, an unknown task, a simulator that is not installed, or not one replay through
            the tokenizer that ended without an error.
        OSError: the folder cannot be written, or a system library is missing.
    """
    opener = partial(open_codec, Path(run.tokenizer), horizon=run.horizon)
    replay(run, opener, kind=opener().kind, identity=fingerprint(Path(run.tokenizer)))


def replay(run: ReplayRun, opener: Opener, *, kind: str, identity: str) -> None:
    """`run`, with any codec.

    Args:
        opener: called once in each process.
        kind: a word for the codec.
        identity: tells this codec from others, so that no episode of another one is taken for its own.
    """
    tasks = run.tasks or list(TASKS[run.tier])
    for task in tasks:
        check_task(task)
        check_installed(task)
    folder = Path(run.output)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / CONFIG, settings_yaml(run))
    begin = time.perf_counter()
    log = EpisodesLog(folder, identity + settings_yaml(replace(run, processes=1)))
    play_missing(run, tasks, opener, log)
    scores = score(log.attempts, run.confidence)
    figures = {"kind": kind, "horizon": run.horizon, "linger": run.linger} | replay_figures(scores)
    write_summary(folder, figures | {"seconds": round(time.perf_counter() - begin, 1)}, device="cpu")
    report(folder, figures, scores.attempts)
    log_table(figures)
    conclude(folder, log.attempts)


def plan_episodes(run: ReplayRun, tasks: list[str]) -> list[tuple[Trial, ...]]:
    """Every episode with its ways, a task's together: opening a world takes seconds."""
    ways = (Controller.raw, Controller.codec, *([Controller.chunks] if run.chunks else []))
    return [
        tuple(Trial(task=task, number=number, controller=way, film=None) for way in ways)
        for task in tasks
        for number in range(run.episodes)
    ]


def play_missing(run: ReplayRun, tasks: list[str], opener: Opener, log: EpisodesLog) -> None:
    """Do every trial that `log` lacks, in `run.processes` processes."""
    rules = Rules(seed=run.seed, max_steps=run.max_steps, execute_steps=run.horizon, image_pixels=0)
    episodes = plan_episodes(run, tasks)
    missing = [tuple(trial for trial in trials if not log.has(trial)) for trials in episodes]
    jobs = [Job(trials=trials, rules=rules, linger=run.linger, opener=opener) for trials in missing if trials]
    if not jobs:
        return
    with tqdm(total=len(episodes), initial=len(episodes) - len(jobs), unit="episode", desc="replay") as bar:
        for done in map_jobs(work, jobs, min(run.processes, len(jobs)), draw=False):
            for attempt in done:
                log.add(attempt)
            bar.set_postfix(task=done[0].trial.task, refresh=False)
            bar.update()


def work(job: Job) -> list[Attempt]:
    """Play one episode in a worker. Its expert is asked once for all ways."""
    expert = cache(expert_actions)
    return [play_trial(trial, job.rules, play_of(trial.controller, job, expert)) for trial in job.trials]


def play_of(controller: Controller, job: Job, expert: Expert) -> Play:
    """How a controller plays an episode."""
    if controller is Controller.raw:
        return play_raw(expert, job.linger)
    codec = open_here(job.opener)
    return play_codec(codec, expert, job.linger) if controller is Controller.codec else play_chunks(codec)


def open_here(opener: Opener) -> Codec:
    """This process's codec, opened at the first call."""
    if not _codecs:
        # As many processes run as there are to be threads.
        torch.set_num_threads(1)
        _codecs.append(opener())
    return _codecs[0]


def fingerprint(folder: Path) -> str:
    """Of all files in a folder, by name."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def conclude(folder: Path, attempts: list[Attempt]) -> None:
    """Say where everything is.

    Raises:
        ValueError: not one replay through the codec ended without an error.
    """
    logger.info("report: %s", (folder / REPORT).resolve())
    logger.info("summary: %s", (folder / SUMMARY).resolve())
    mine = [attempt for attempt in attempts if attempt.trial.controller is not Controller.raw]
    errors = [attempt for attempt in mine if attempt.outcome is Outcome.error]
    if len(errors) == len(mine):
        raise ValueError(
            f"all {len(mine)} replays through the codec ended in an error, the first in {errors[0].message}"
        )
