"""Job `export_lerobot`: the episodes of one robot in shards become a LeRobot dataset of version 3.0."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from flagscale_vla.config.export_lerobot import ExportLeRobotRun
from flagscale_vla.data.convert.converter import Refusal
from flagscale_vla.data.convert.job import Tally
from flagscale_vla.data.convert.report import count_reasons, describe, reason_rows, write_refused
from flagscale_vla.data.lerobot.layout import Layout
from flagscale_vla.data.lerobot.survey import FrameEntry, Survey, group_episodes, survey_shard
from flagscale_vla.data.lerobot.write_file import (
    LOGS,
    UNFINISHED,
    EpisodePlan,
    FilePlan,
    load_log,
    log_path,
    plan_files,
    write_file,
)
from flagscale_vla.data.lerobot.write_meta import write_meta
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.store import Store, open_store
from flagscale_vla.reports.outputs import keep_settings, write_summary
from flagscale_vla.reports.pages import REPORT, write_report
from flagscale_vla.robots.embodiments import FILE_NAME, Embodiment, read_embodiments

logger = logging.getLogger(__name__)

SHOWN_EPISODES = 8


def run(run: ExportLeRobotRun) -> None:
    """Look through the shards, write the files that are still missing, then `meta`, summary and report.

    Raises:
        ValueError: the shards hold no episode of the robot, too much of them is refused, or they have changed since an
            earlier start of the same run.
        OSError: a process died, or a folder cannot be read or written.
    """
    begin = time.perf_counter()
    folder = Path(run.output)
    keep_settings(run, folder, free=("processes", "max_refused_share"))
    store = open_store(run.data.shards, run.data.cache)
    robot, survey = survey_robot(store, run)
    whole, refused = whole_episodes(survey, run)
    tasks, episodes = number_episodes(whole)
    layout = Layout(root=folder, robot=robot, shape=whole[0][0].shape, pictures=run.pictures, video=run.video)
    check_layout(layout)
    files = plan_files(episodes, run.frames_per_file)
    write_missing(store, layout, files, run.processes)
    logs = [load_log(folder, plan.number) for plan in files]
    write_meta(layout, files, logs, tasks)
    write_refused(folder, [("survey", refusal) for refusal in refused])
    figures: dict[str, object] = {
        "episodes": len(episodes),
        "frames": sum(map(len, whole)),
        "tasks": len(tasks),
        "files": len(files),
        "refused": sum(refusal.rows for refusal in refused),
        "refused_per_reason": dict(count_reasons(refused).most_common()),
        "skipped": dict(sorted(survey.skipped.items())),
        "seconds": round(time.perf_counter() - begin, 2),
        "process_seconds": round(sum(log.seconds for log in logs), 2),
    }
    conclude(store, layout, episodes, refused, figures)


def whole_episodes(survey: Survey, run: ExportLeRobotRun) -> tuple[list[tuple[FrameEntry, ...]], list[Refusal]]:
    """The episodes to be written, and all that is refused.

    Raises:
        ValueError: there is no whole episode, or too much is refused.
    """
    whole, broken = group_episodes(survey.entries, run.splits)
    refused = [*survey.refused, *broken]
    Tally(run.max_refused_share).count(sum(map(len, whole)), refused)
    if not whole:
        raise ValueError(f"data.shards={run.data.shards} hold no whole episode; left out: {dict(survey.skipped)}")
    return whole, refused


def survey_robot(store: Store, run: ExportLeRobotRun) -> tuple[Embodiment, Survey]:
    """The robot to be written and what the shards hold of it, other robots' frames counted as left out.

    Raises:
        ValueError: there are no shards, or no such robot, or several and none is named.
    """
    shards = [(split, name) for split in run.splits for name in store.list_shards(split)]
    if not shards:
        raise ValueError(f"data.shards={run.data.shards} holds no shards of {' or '.join(run.splits)}")
    found = Survey()
    work = partial(survey_shard, store)
    for part in tqdm(map_jobs(work, shards, min(run.processes, len(shards))), total=len(shards), desc="survey"):
        found.entries += part.entries
        found.refused += part.refused
        found.skipped += part.skipped
    found.refused.sort(key=lambda refusal: refusal.place)
    robots = load_robots(store)
    robot = choose_robot(run, Counter(entry.shape.robot for entry in found.entries), robots)
    others = [entry for entry in found.entries if entry.shape.robot != robot.name]
    if others:
        found.skipped["another robot"] = len(others)
        found.entries = [entry for entry in found.entries if entry.shape.robot == robot.name]
    return robot, found


def load_robots(store: Store) -> dict[str, Embodiment]:
    """What the shards' `embodiments.json` describes.

    Raises:
        ValueError: it is missing or damaged.
    """
    content = store.find(FILE_NAME)
    if content is None:
        raise ValueError(f"{store.url}/{FILE_NAME} is missing: it tells what the robots' numbers mean")
    return read_embodiments(content, f"{store.url}/{FILE_NAME}")


def choose_robot(run: ExportLeRobotRun, frames: Counter[str], robots: dict[str, Embodiment]) -> Embodiment:
    """The robot that is named, or the only one.

    Raises:
        ValueError: there is no such one, or several and none is named.
    """
    name = run.robot or (next(iter(frames)) if len(frames) == 1 else "")
    if name not in robots or name not in frames:
        raise ValueError(
            f"robot={run.robot or repr('')}: a LeRobot dataset is one robot's; "
            f"data.shards={run.data.shards} hold frames of: "
            f"{', '.join(f'{robot} ({count})' for robot, count in sorted(frames.items())) or 'none'}"
        )
    return robots[name]


def check_layout(layout: Layout) -> None:
    """See that frames fit the robot that `embodiments.json` describes, and that a video can hold them.

    Raises:
        ValueError: they do not.
    """
    shape, robot = layout.shape, layout.robot
    cameras = {name for name, _, _ in shape.pictures}
    if (shape.state, shape.action, cameras) != (len(robot.state), len(robot.action), set(robot.cameras)):
        raise ValueError(f"robot {robot.name!r} is described as {robot}, its frames are {shape}; the two must agree")
    odd = [(key, sides) for key, (_, *sides) in layout.cameras.items() if any(side % 2 for side in sides)]
    if layout.videos and odd:
        raise ValueError(
            f"pictures=video: {odd[0][0]} has sides {odd[0][1]}, and mp4 files need even ones. This would pass: "
            "pictures=image"
        )


def number_episodes(whole: Sequence[tuple[FrameEntry, ...]]) -> tuple[list[str], list[EpisodePlan]]:
    """The different instructions in the order of their first frames, and each episode's place in the dataset."""
    tasks = {words: place for place, words in enumerate(dict.fromkeys(f.words for frames in whole for f in frames))}
    episodes, start = [], 0
    for index, frames in enumerate(whole):
        indices = tuple(tasks[frame.words] for frame in frames)
        episodes.append(EpisodePlan(index=index, start=start, frames=frames, task_indices=indices))
        start += len(frames)
    return list(tasks), episodes


def write_missing(store: Store, layout: Layout, files: Sequence[FilePlan], processes: int) -> None:
    """Write the files whose log is not there.

    Raises:
        ValueError: the shards are not those that an earlier start of this run has read.
    """
    shutil.rmtree(layout.root / UNFINISHED, ignore_errors=True)
    jobs = [(plan, hash_plan(plan)) for plan in files]
    missing = [job for job in jobs if not log_path(layout.root, job[0].number).is_file()]
    known = {path.name for path in (layout.root / LOGS).glob("*.json")}
    done = [job for job in jobs if log_path(layout.root, job[0].number).is_file()]
    changed = any(load_log(layout.root, plan.number).plan != digest for plan, digest in done)
    if changed or known - {log_path(layout.root, plan.number).name for plan in files}:
        raise ValueError(f"output={layout.root} holds files of other shards: give another output= to start afresh")
    work = partial(write_file, store, layout)
    total = sum(len(episode.frames) for plan in files for episode in plan.episodes)
    with tqdm(total=total, unit="frame", desc="write") as bar:
        bar.update(total - sum(len(episode.frames) for plan, _ in missing for episode in plan.episodes))
        for log in map_jobs(work, missing, min(processes, max(1, len(missing)))):
            bar.update(sum(len(episode.frames) for episode in files[log.number].episodes))
    shutil.rmtree(layout.root / UNFINISHED, ignore_errors=True)


def hash_plan(plan: FilePlan) -> str:
    """Short hash of what a file is to hold."""
    return hashlib.blake2b(repr(plan).encode(), digest_size=8).hexdigest()


def conclude(
    store: Store,
    layout: Layout,
    episodes: Sequence[EpisodePlan],
    refused: Sequence[Refusal],
    figures: dict[str, object],
) -> None:
    """Write summary and report, and say where all is."""
    step = -(-len(episodes) // SHOWN_EPISODES)
    shown = [describe(read_sample(store, episode.frames[0].place)) for episode in episodes[::step]]
    write_summary(layout.root, figures, device="cpu")
    values = {"figures": figures, "reasons": reason_rows(refused), "features": layout.features(), "samples": shown}
    write_report(layout.root, "export_lerobot.html.j2", values)
    logger.info("%d episodes, %d rows refused", figures["episodes"], figures["refused"])
    logger.info("dataset: %s", layout.root.resolve())
    logger.info("report: %s", (layout.root / REPORT).resolve())
