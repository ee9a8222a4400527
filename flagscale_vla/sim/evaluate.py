"""Job `eval_*`: roll a checkpoint out on unseen seeds, beside the expert as ceiling and doing nothing as floor."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from flagscale_vla.config.checkpoints import METADATA, find_checkpoint
from flagscale_vla.config.runs import EvalRun
from flagscale_vla.policy.client import PolicyClient, open_policy
from flagscale_vla.reports.outputs import CONFIG, SUMMARY, replace_text, settings_yaml, write_summary
from flagscale_vla.reports.pages import REPORT
from flagscale_vla.sim.episodes_log import EpisodesLog
from flagscale_vla.sim.film import check_video
from flagscale_vla.sim.openloop import OpenLoop, check_heldout, measure_open_loop
from flagscale_vla.sim.rollout import (
    Attempt,
    Controller,
    Outcome,
    Plan,
    Rules,
    Trial,
    attempt,
    expert_plan,
    policy_plan,
    zero_plan,
)
from flagscale_vla.sim.scores import score
from flagscale_vla.sim.scores_report import log_table, report
from flagscale_vla.sim.workers import map_jobs
from flagscale_vla.sim.worlds.tasks import check_installed, check_task

logger = logging.getLogger(__name__)

Opener = Callable[[], PolicyClient]
"""Opens the policy in the process that calls it; picklable"""

VIDEOS = "videos"

_clients: list[PolicyClient] = []
"""The one policy this process has opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker does next: a trial, or, where it is None, the open-loop error on `shards`."""

    trial: Trial | None
    rules: Rules
    opener: Opener
    shards: Path


def run(run: EvalRun) -> None:
    """Evaluate a checkpoint and write videos, summary and report.

    Raises:
        ValueError: no such checkpoint, an unknown task, a simulator that is not installed, shards without held-out
            frames, or not one episode that ended without an error.
        OSError: no renderer works, or the folder cannot be written.
    """
    checkpoint = find_checkpoint(Path(run.checkpoint))
    platform = replace(run.platform, threads=1)
    opener = partial(
        open_policy, checkpoint, platform=platform, denoise_steps=run.denoise_steps, temperature=run.temperature
    )
    evaluate(run, opener, identity=f"{checkpoint.resolve()}\n{(checkpoint / METADATA).read_text(encoding='utf-8')}")


def evaluate(run: EvalRun, opener: Opener, *, identity: str) -> None:
    """`run`, with any policy.

    Args:
        opener: called once in each process that needs the policy.
        identity: tells this policy from others, so that no episode of another one is taken for its own.
    """
    for task in run.tasks:
        check_task(task)
        check_installed(task)
    if run.videos:
        check_video()
    check_heldout(Path(run.shards))
    folder = Path(run.output)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / CONFIG, settings_yaml(run))
    begin = time.perf_counter()
    attempts, open_loop = roll_all(
        run, opener, EpisodesLog(folder, identity + settings_yaml(replace(run, processes=1)))
    )
    scores = score(attempts, run.confidence)
    figures = scores.figures() | {
        "open_loop_error_ratio": open_loop.ratio,
        "open_loop_error": open_loop.error,
        "open_loop_frames": open_loop.frames,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_summary(folder, figures, device=open_loop.device)
    report(folder, figures, attempts)
    log_table(figures)
    conclude(folder, attempts)


def roll_all(run: EvalRun, opener: Opener, log: EpisodesLog) -> tuple[list[Attempt], OpenLoop]:
    """Do every trial and the open-loop measurement that `log` lacks, in `run.processes` processes."""
    rules = Rules(
        seed=run.seed, max_steps=run.max_steps, execute_steps=run.execute_steps, image_pixels=run.image_pixels
    )
    trials = plan_trials(run)
    missing: list[Trial | None] = [trial for trial in trials if not log.has(trial)]
    if log.open_loop is None:
        missing.insert(0, None)
    jobs = [Job(trial=trial, rules=rules, opener=opener, shards=Path(run.shards)) for trial in missing]
    total = len(trials) + 1
    with tqdm(total=total, initial=total - len(jobs), unit="episode", desc="evaluate") as bar:
        for done in map_jobs(work, jobs, min(run.processes, len(jobs)), draw=True) if jobs else ():
            log.add(done)
            bar.set_postfix(success=success_so_far(log.attempts), refresh=False)
            bar.update()
    assert log.open_loop is not None
    return log.attempts, log.open_loop


def success_so_far(attempts: list[Attempt]) -> str:
    """Successes of the policy over its episodes."""
    mine = [attempt.outcome for attempt in attempts if attempt.trial.controller is Controller.policy]
    return f"{mine.count(Outcome.success)}/{len(mine)}"


def plan_trials(run: EvalRun) -> list[Trial]:
    """Every episode: the policy's first, since they take longest, then expert and zero on the same seeds, unseen."""
    trials = []
    for controller in (Controller.policy, Controller.expert, Controller.zero):
        for task in run.tasks:
            for number in range(run.episodes):
                filmed = controller is Controller.policy and number < run.videos
                path = Path(run.output) / VIDEOS / f"{task.replace('/', '-')}-{number:03d}.mp4"
                trials.append(Trial(task=task, number=number, controller=controller, film=path if filmed else None))
    return trials


def work(job: Job) -> Attempt | OpenLoop:
    """Do one job in a worker."""
    if job.trial is None:
        return measure_open_loop(open_client(job.opener), job.shards, job.rules.seed)
    return attempt(job.trial, job.rules, plan_of(job.trial.controller, job))


def plan_of(controller: Controller, job: Job) -> Plan:
    """How a controller finds its next actions."""
    if controller is Controller.policy:
        return policy_plan(open_client(job.opener), job.rules.execute_steps)
    return expert_plan if controller is Controller.expert else zero_plan


def open_client(opener: Opener) -> PolicyClient:
    """This process's policy, opened at the first call."""
    if not _clients:
        _clients.append(opener())
    return _clients[0]


def conclude(folder: Path, attempts: list[Attempt]) -> None:
    """Say where everything is.

    Raises:
        ValueError: not one of the policy's episodes ended without an error.
    """
    logger.info("report: %s", (folder / REPORT).resolve())
    logger.info("videos: %s", (folder / VIDEOS).resolve())
    logger.info("summary: %s", (folder / SUMMARY).resolve())
    mine = [attempt for attempt in attempts if attempt.trial.controller is Controller.policy]
    errors = [attempt for attempt in mine if attempt.outcome is Outcome.error]
    if len(errors) == len(mine):
        raise ValueError(f"all {len(mine)} episodes of the policy ended in an error, the first in {errors[0].message}")
