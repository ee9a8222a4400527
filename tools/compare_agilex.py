"""Compare a converted AgileX dataset with what RoboBrain-X0's own script makes of the same recordings.

    python tools/compare_agilex.py CHECKOUT OUTPUT

CHECKOUT is a checkout of RoboBrain-X0, of which `data_process/data_process.py` is run as it is, with empty stand-ins
for OpenCV, jsonlines and its tokenizer: pictures and codes are not compared. OUTPUT is the folder of a run of
`convert_agilex` with `tail=0`, `static_tolerance=0` and `gripper_scale=1`, which is all that the script can do.
Compared are which rows become samples, their states, and every step of their chunks. Any difference beyond float32
fails.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from flagscale_vla.config.convert_agilex import ARMS, AgilexRun, Variant
from flagscale_vla.data.convert.agilex.annotations import CAMERAS, Stretch, read_annotations
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.shards import SPLITS, list_shards
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import Action, RawSample, State

TOLERANCE = 1e-6
"""Metres, radians or whatever a gripper counts: float32 of numbers about 1."""
SOURCE = "run"
CODES = "data_process.action_token.action_chunk_to_fast_token"


class NoCodes:
    """Its tokenizer, of which nothing is compared."""

    def __init__(self, **_: object) -> None:
        pass

    def process_action_chunk_to_fast_token(self, _: object) -> list[list[int]]:
        """One code."""
        return [[0]]


def load_theirs(checkout: Path, run: AgilexRun) -> Any:
    """Its script as a module, set to the run's intervals and grippers."""
    stand_in("cv2")
    stand_in("jsonlines")
    for package in ("data_process", "data_process.data_utils", "data_process.action_token"):
        stand_in(package).__path__ = [str(checkout / package.replace(".", "/"))]
    stand_in(CODES, ActionChunkProcessor=NoCodes)
    theirs = importlib.import_module("data_process.data_process")
    theirs.FRAME_SAMPLE_INTERVAL, theirs.ACTION_SAMPLE_INTERVAL = run.frame_interval, run.action_interval
    theirs.TrajectoryProcessor.save_video_frames = lambda *_, **__: 1
    theirs.min_gripper_value = {SOURCE: [-offset for offset in run.gripper_offset]}
    return theirs


def stand_in(name: str, **content: object) -> ModuleType:
    """A module made here."""
    module = ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


def their_samples(theirs: Any, stretch: Stretch, run: AgilexRun, folder: Path) -> dict[int, dict[str, Any]]:
    """By row, the line that the script writes for a stretch."""
    scale = {"scale_": [1.0] * 7 * ARMS, "offset_": [0.0] * 7 * ARMS}
    (folder / "scale.json").write_text(json.dumps({"action.eepose": scale, "action.qpos": scale}))
    processor = theirs.TrajectoryProcessor(
        Namespace(normal_path=str(folder / "scale.json"), max_len=256, padding=None, chunk=run.horizon)
    )
    processor.total_traj = processor.original_sample_num = processor.wo_static_sample_num = processor.filtered_traj = 0
    processor.json_file_writer = io.StringIO()
    # It names folders after parts of a film's path, and reads none.
    films = dict.fromkeys(CAMERAS.values(), "a/b/c/d/film.mp4")
    entry = {
        "raw_task": stretch.task,
        "task": stretch.subtask,
        "frame": {"start_frame": stretch.first + 1, "end_frame": stretch.last},
        "data": films | {"state": stretch.state},
    }
    processor.process_single_item([SOURCE, "", [entry]], str(folder), str(folder))
    lines = [json.loads(line) for line in processor.json_file_writer.getvalue().splitlines()]
    return {row_of(line["state"]["eepose"]): line for line in lines}


def row_of(path: str) -> int:
    """The row that a file's name ends with."""
    return int(Path(path).stem.rpartition("_")[2])


def our_samples(output: Path) -> Iterator[tuple[int, int, RawSample]]:
    """(stretch, row, sample) of everything that was converted."""
    for shard in (shard for split in SPLITS for shard in list_shards(output, split)):
        content = shard.read_bytes()
        for group in group_members(walk_tar(content, whole=True)):
            meta = parse_meta(shard.name, group, content)
            yield meta["episode"], meta["row"], parse_sample(shard.name, group, content)


def largest_difference(raw: RawSample, line: dict[str, Any], variant: Variant) -> float:
    """Between a sample's numbers and those of the script."""
    state = next(segment for segment in raw.segments if isinstance(segment, State))
    action = next(segment for segment in raw.segments if isinstance(segment, Action))
    theirs = [np.load(line[kind][variant.value]) for kind in ("state", "action")]
    return float(max(np.abs(theirs[0][0] - state.values).max(), np.abs(theirs[1] - action.values).max()))


def main() -> None:
    """Read the command line, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    settings = OmegaConf.merge(OmegaConf.structured(AgilexRun), OmegaConf.load(arguments.output / "config.yaml"))
    run = OmegaConf.to_object(settings)
    assert isinstance(run, AgilexRun)
    if (run.tail, run.static_tolerance, run.gripper_scale) != (0, 0.0, 1.0):
        sys.exit("the script knows tail=0 static_tolerance=0 gripper_scale=1 alone: convert with these")
    theirs, ours = load_theirs(arguments.checkout, run), list(our_samples(arguments.output))
    worst, compared, lacking = 0.0, 0, 0
    for stretch in (entry for entry in read_annotations(run) if isinstance(entry, Stretch)):
        with tempfile.TemporaryDirectory() as folder:
            lines = their_samples(theirs, stretch, run, Path(folder))
            own = {row: raw for number, row, raw in ours if number == stretch.number}
            lacking += len(lines.keys() ^ own.keys())
            for row in lines.keys() & own.keys():
                worst = max(worst, largest_difference(own[row], lines[row], run.variant))
                compared += 1
    print(f"{compared} samples compared, {lacking} in only one of the two; numbers differ by at most {worst:.2g}")
    sys.exit(1 if lacking or worst > TOLERANCE or not compared else 0)


if __name__ == "__main__":
    main()
