"""Job `record_*`: scripted experts drive simulators, and their episodes become shards."""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Picture
from tqdm import tqdm

from flagscale_vla.config.runs import RecordRun
from flagscale_vla.data.shards import shard_path
from flagscale_vla.reports.outputs import SUMMARY, keep_settings, write_summary
from flagscale_vla.reports.pages import REPORT, figure_uri, picture_uri, write_report
from flagscale_vla.robots.embodiments import save_embodiments
from flagscale_vla.sim.blocks import (
    BINS,
    QUESTIONS,
    UNFINISHED,
    Block,
    BlockLog,
    is_recorded,
    load_log,
    plan_blocks,
    record_block,
)
from flagscale_vla.sim.questions.asking import Refusal
from flagscale_vla.sim.questions.report import conclude_questions, count_questions
from flagscale_vla.sim.workers import map_jobs
from flagscale_vla.sim.worlds.tasks import TASKS, check_installed, check_task

logger = logging.getLogger(__name__)

FILMSTRIP_FRAMES = 8


def run(run: RecordRun) -> None:
    """Record all episodes that are still missing, then write embodiments, summary and report.

    Raises:
        ValueError: an unknown task, a simulator that is not installed, other settings than those of the episodes
            already there, or an expert that fails too often.
        OSError: pictures are asked for and no renderer works, or the folder cannot be written.
    """
    tasks = run.tasks or list(TASKS[run.tier])
    for task in tasks:
        check_task(task)
        check_installed(task)
    folder = Path(run.output)
    keep_settings(run, folder, free=("processes",))
    blocks = plan_blocks(run, tasks)
    begin = time.perf_counter()
    if record_missing(run, blocks) or not (folder / SUMMARY).is_file():
        conclude(run, blocks, time.perf_counter() - begin)
    logger.info("shards: %s", folder.resolve())
    if run.questions:
        logger.info("questions: %s", (folder / QUESTIONS / REPORT).resolve())
    logger.info("report: %s", (folder / REPORT).resolve())
    logger.info("summary: %s", (folder / SUMMARY).resolve())


def record_missing(run: RecordRun, blocks: Sequence[Block]) -> int:
    """Record the blocks whose shard is not there; returns how many there were."""
    folder = Path(run.output)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    missing = [block for block in blocks if not is_recorded(folder, block)]
    total = sum(block.count for block in blocks)
    done = total - sum(block.count for block in missing)
    if not missing:
        logger.info("all %d episodes are recorded already", total)
        return 0
    with tqdm(total=total, initial=done, unit="episode", desc="record") as bar:
        processes = min(run.processes, len(missing))
        jobs = [(run, block) for block in missing]
        for log in map_jobs(record_block, jobs, processes, draw=run.image_pixels > 0):
            bar.set_postfix(task=log.task, refresh=False)
            bar.update(len(log.lengths))
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return len(missing)


def conclude(run: RecordRun, blocks: Sequence[Block], seconds: float) -> None:
    """Write embodiments, summary and report from the logs of all blocks."""
    folder = Path(run.output)
    logs = [load_log(folder, block) for block in blocks]
    embodiments = list({log.embodiment.name: log.embodiment for log in logs}.values())
    save_embodiments(folder, embodiments)
    if run.questions:
        conclude_questions(folder / QUESTIONS, embodiments, question_counts(logs), refusals(logs))
    figures = count(logs, seconds)
    write_summary(folder, figures, device="cpu")
    tasks = list(dict.fromkeys(log.task for log in logs))
    rows = [task_row(folder, task, [log for log in logs if log.task == task]) for task in tasks]
    write_report(folder, "record.html.j2", {"figures": figures, "rows": rows, "histograms": histograms(logs)})
    rejected = {task: number for task, number in figures["rejected_per_task"].items() if number}
    logger.info(
        "%d episodes for training and %d held out, %d steps; %d tries of the expert failed and were left out%s",
        figures["episodes"],
        figures["heldout_episodes"],
        figures["steps"],
        figures["rejected"],
        f": {rejected}" if rejected else "",
    )


def count(logs: Sequence[BlockLog], seconds: float) -> dict[str, Any]:
    """The figures of `summary.json`. `episodes`, `steps` and per-task numbers are those kept for training."""
    train = [log for log in logs if log.split == "train"]
    heldout = [log for log in logs if log.split == "heldout"]
    tasks = list(dict.fromkeys(log.task for log in logs))
    return {
        "episodes": sum(len(log.lengths) for log in train),
        "heldout_episodes": sum(len(log.lengths) for log in heldout),
        "rejected": sum(log.rejected for log in logs),
        "steps": sum(sum(log.lengths) for log in train),
        "heldout_steps": sum(sum(log.lengths) for log in heldout),
        "episodes_per_task": {task: sum(len(log.lengths) for log in train if log.task == task) for task in tasks},
        "rejected_per_task": {task: sum(log.rejected for log in logs if log.task == task) for task in tasks},
        **count_questions(question_counts(logs), refusals(logs)),
        "seconds": round(seconds, 1),
        "process_seconds": round(sum(log.seconds for log in logs), 1),
    }


def question_counts(logs: Sequence[BlockLog]) -> Counter[tuple[str, str]]:
    """Samples by task and kind."""
    counts: Counter[tuple[str, str]] = Counter()
    for log in logs:
        counts.update({(log.task, kind): number for kind, number in log.questions.items()})
    return counts


def refusals(logs: Sequence[BlockLog]) -> list[Refusal]:
    """All questions that had no clear answer."""
    return [refusal for log in logs for refusal in log.refused]


def task_row(folder: Path, task: str, logs: Sequence[BlockLog]) -> dict[str, object]:
    """What the report says of one task."""
    lengths = [length for log in logs for length in log.lengths]
    return {
        "task": task,
        "robot": logs[0].embodiment.name,
        "kept": len(lengths),
        "rejected": sum(log.rejected for log in logs),
        "shortest": min(lengths),
        "mean": round(float(np.mean(lengths)), 1),
        "longest": max(lengths),
        "filmstrip": filmstrip_uri(shard_path(folder, logs[0].split, logs[0].shard), logs[0]),
    }


def filmstrip_uri(shard: Path, log: BlockLog) -> str | None:
    """The filmstrip for a page; None for a robot without cameras."""
    return picture_uri(filmstrip(shard, log)) if log.embodiment.cameras else None


def filmstrip(shard: Path, log: BlockLog) -> NDArray[np.uint8]:
    """Frames of a shard's first episode, evenly spaced, a row per camera."""
    chosen = np.linspace(0, log.lengths[0] - 1, min(FILMSTRIP_FRAMES, log.lengths[0])).round().astype(int)
    rows = []
    with tarfile.open(shard) as tar:
        for camera in log.embodiment.cameras:
            names = [name for name in tar.getnames() if name.endswith(f".{camera}.jpg")]
            members = [tar.extractfile(names[index]) for index in chosen]
            frames = [np.asarray(Picture.open(io.BytesIO(member.read()))) for member in members if member is not None]
            rows.append(np.concatenate(frames, axis=1))
    return np.concatenate(rows, axis=0)


def histograms(logs: Sequence[BlockLog]) -> list[dict[str, str]]:
    """One picture per robot: how often each action dim takes which value."""
    robots = {log.embodiment.name: log.embodiment for log in logs}
    pictures = []
    for name, embodiment in robots.items():
        counts = np.sum([log.histogram for log in logs if log.embodiment.name == name], axis=0)
        figure = Figure(figsize=(2.2 * len(counts), 1.8), layout="constrained")
        edges = np.linspace(-1.0, 1.0, BINS + 1)
        axes = figure.subplots(1, len(counts), squeeze=False)[0]
        for axis, title, row in zip(axes, embodiment.action, counts, strict=True):
            axis.stairs(row, edges, fill=True)
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=7)
        pictures.append({"robot": name, "picture": figure_uri(figure)})
    return pictures
