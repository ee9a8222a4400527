"""Job `convert_eo1`: every dataset of a mixture in EO-1's YAML becomes a folder of shards, its weights a config."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.config.convert_eo1 import ConvertEo1Run
from flagscale_vla.config.convert_lerobot import ConvertLeRobotRun
from flagscale_vla.config.mixture import Weigh
from flagscale_vla.data.convert.eo1_frames import Robot
from flagscale_vla.data.convert.eo1_mixture import Eo1Mixture, RobotDataset, RowsDataset, load_mixture
from flagscale_vla.data.convert.eo1_rows import Eo1RowsConverter
from flagscale_vla.data.convert.job import FREE, convert
from flagscale_vla.data.lerobot.convert import LeRobotConverter, open_converter
from flagscale_vla.reports.outputs import SUMMARY, keep_settings, replace_text, write_summary
from flagscale_vla.reports.pages import REPORT, write_report

logger = logging.getLogger(__name__)

MIXTURE = "mixture/eo1.yaml"
HEADER = """\
# @package data
# {count} datasets of {source}. A weight is what EO-1 takes in a pass: every row once, and of a robot's frames as many
# as all of them times its weight. Used so, with any training config:
#   python run.py --config-name train_3b_action --config-dir {folder} +mixture=eo1 ...
"""


def run(run: ConvertEo1Run) -> None:
    """Convert all datasets one after another, each in parallel; a run that was stopped goes on where it was.

    Raises:
        ConfigError: a field of the YAML that cannot work, or one that there is not.
        ValueError: a dataset that cannot be read, or of which too much is refused.
    """
    folder = Path(run.output)
    mixture = load_mixture(Path(run.mixture), Path(run.base), Path(run.lerobot_home) if run.lerobot_home else None)
    keep_settings(run, folder, free=FREE)
    # All are opened before the first is converted: a wrong path at the end of a long list shows at once.
    converters = {dataset.name: open_robot(run, dataset) for dataset in mixture.robots}
    check_rows(mixture.rows)
    for dataset in mixture.robots:
        logger.info("%s: %s", dataset.name, dataset.path)
        convert(converters[dataset.name], converters[dataset.name].run)
    robots = robots_of(mixture.robots, converters)
    for rows in mixture.rows:
        logger.info("%s: %s", rows.name, rows.path)
        convert(Eo1RowsConverter(run=run, dataset=rows, robots=robots), part_of(run, rows.name))
    conclude(run, mixture)


def part_of(run: ConvertEo1Run, name: str) -> ConvertEo1Run:
    """The settings of one dataset's conversion."""
    return replace(run, output=str(Path(run.output) / name))


def open_robot(run: ConvertEo1Run, dataset: RobotDataset) -> LeRobotConverter:
    """The converter of a LeRobot dataset.

    Raises:
        ValueError: naming the dataset, and why it cannot be read.
    """
    base = {field.name: getattr(part_of(run, dataset.name), field.name) for field in fields(ConvertRun)}
    settings = ConvertLeRobotRun(
        **base,
        source=str(dataset.path),
        name=dataset.name,
        # A name of its own: EO-1 scales every dataset by its own statistics.
        robot=dataset.name,
        camera_keys=list(dataset.video_keys),
        state_keys=list(dataset.state_keys),
        action_keys=list(dataset.action_keys),
        episodes=list(dataset.episodes),
        stride=1,
        horizon=run.horizon,
        delta_actions=dataset.delta_action,
        effector_indices=list(dataset.effector_indices) if dataset.delta_action else [],
        instruction=dataset.instruction,
        subtask_share=dataset.subtask_share,
    )
    try:
        return open_converter(settings)
    except ValueError as error:
        raise ValueError(f"{run.mixture}: dataset {dataset.repo_id!r}: {error}") from error


def check_rows(datasets: Sequence[RowsDataset]) -> None:
    """See that files are there.

    Raises:
        ValueError: one is not.
    """
    for dataset in datasets:
        if not dataset.path.is_file():
            raise ValueError(f"{dataset.path}: there is no such file; mm_datasets names it as json_path")


def robots_of(datasets: Sequence[RobotDataset], converters: Mapping[str, LeRobotConverter]) -> dict[str, Robot | None]:
    """The robots as interleaved rows call them; None for a name that two datasets have."""
    robots: dict[str, Robot | None] = {}
    for dataset in datasets:
        robot = Robot.of(dataset.name, converters[dataset.name].selection, dataset.episodes)
        robots[dataset.repo_id] = None if dataset.repo_id in robots else robot
    return robots


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What became of one dataset."""

    name: str
    path: Path
    figures: Mapping[str, Any]
    """of its own summary"""
    weight: int
    """samples of it in one pass of the mixture"""


def conclude(run: ConvertEo1Run, mixture: Eo1Mixture) -> None:
    """Write the mixture's config, a summary over all datasets, and a page."""
    folder = Path(run.output)
    weights = {dataset.name: dataset.weight for dataset in mixture.robots}
    datasets: list[RobotDataset | RowsDataset] = [*mixture.robots, *mixture.rows]
    parts = [read_part(folder, dataset.name, dataset.path, weights) for dataset in datasets]
    for part in parts:
        if not part.weight:
            logger.warning("%s gives no samples and is left out of %s", part.name, folder / MIXTURE)
    write_mixture(run, parts)
    total = max(1, sum(part.weight for part in parts))
    rows = [
        {
            "name": part.name,
            "source": str(part.path),
            "samples": part.figures["samples"],
            "heldout_samples": part.figures["heldout_samples"],
            "refused": part.figures["refused"],
            "weight": part.weight,
            "share": round(part.weight / total, 4),
        }
        for part in parts
    ]
    totals = {key: sum(int(part.figures[key]) for part in parts) for key in ("samples", "heldout_samples", "refused")}
    write_summary(folder, totals | {"datasets": rows}, device="cpu")
    write_report(folder, "convert_eo1.html.j2", {"rows": rows, "totals": totals, "mixture": MIXTURE})
    logger.info("mixture: %s", (folder / MIXTURE).resolve())
    logger.info("report: %s", (folder / REPORT).resolve())
    logger.info("summary: %s", (folder / SUMMARY).resolve())


def read_part(folder: Path, name: str, path: Path, weights: Mapping[str, float]) -> Part:
    """What became of one dataset, and how many samples EO-1 would take of it in a pass: int(frames * weight)."""
    figures = json.loads((folder / name / SUMMARY).read_text(encoding="utf-8"))
    return Part(name=name, path=path, figures=figures, weight=int(figures["samples"] * weights.get(name, 1.0)))


def write_mixture(run: ConvertEo1Run, parts: Sequence[Part]) -> None:
    """Write what `data.mixture` is to be, as a part of a training run's settings."""
    folder = Path(run.output)
    used = [part for part in parts if part.weight]
    sources = {part.name: {"shards": str(folder / part.name), "weight": float(part.weight)} for part in used}
    content = {"shards": "", "weigh": Weigh.samples.value, "mixture": sources}
    path = folder / MIXTURE
    path.parent.mkdir(exist_ok=True)
    header = HEADER.format(count=len(used), source=run.mixture, folder=folder)
    replace_text(path, header + OmegaConf.to_yaml(OmegaConf.create(content)))
