"""Compare converted interleaved rows with what EO-1's own code makes of the same rows.

    python tools/compare_eo1_rows.py CHECKOUT --converted OUTPUT --name interleaved_demo

CHECKOUT is a checkout of EO-1's repository, of which two files are run without its imports: `eo/constants.py`, and the
functions of `eo/data/multim_dataset.py`. OUTPUT is the folder of a `convert_eo1` run, NAME one of its interleaved
datasets. For every row that was converted, EO-1's `build_interleaved_prompt` and `llava_to_openai` are given the row
and the frames that it names; compared are the text of each turn, the cameras in order, and states, actions and padding,
to the last bit. `delta_action` must be false. Any difference fails.
"""

from __future__ import annotations

import argparse
import ast
import copy
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from flagscale_vla.config.convert_eo1 import ConvertEo1Run
from flagscale_vla.data.conversation import is_assistants
from flagscale_vla.data.convert.eo1 import open_robot, robots_of
from flagscale_vla.data.convert.eo1_frames import FramePlace, Robot, find_frame
from flagscale_vla.data.convert.eo1_mixture import load_mixture
from flagscale_vla.data.convert.rows import find_rows, read_rows
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.shards import SPLITS, list_shards
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import Action, Image, RawSample, State, Text

Theirs = dict[str, Any]


def load_theirs(checkout: Path) -> Theirs:
    """EO-1's constants and the functions of its row reader."""
    names: Theirs = {"copy": copy, "random": random, "re": re, "torch": torch}
    names |= {"ACTION": "action", "OBS_STATE": "observation.state"}
    exec((checkout / "eo/constants.py").read_text(), names)
    tree = ast.parse((checkout / "eo/data/multim_dataset.py").read_text())
    functions: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    exec(compile(ast.Module(functions, []), "multim_dataset.py", "exec"), names)
    return names


def item_of(place: FramePlace, horizon: int) -> dict[str, Any]:
    """A frame as EO-1's dataset gives it: cameras by key, states, chunks of actions, and what is past the end."""
    selection = place.robot.selection
    length = selection.dataset.episode(place.episode).length
    steps = np.arange(place.frame, place.frame + horizon)
    keys = [feature.key for feature in (*selection.states, *selection.actions)]
    table = selection.dataset.frame_table(place.episode, keys)
    item: dict[str, Any] = {camera.key: camera.key for camera in selection.cameras}
    for feature in selection.states:
        item[feature.key] = torch.from_numpy(table[feature.key][place.frame].astype(np.float32))
    for feature in selection.actions:
        values = table[feature.key][np.minimum(steps, length - 1)].astype(np.float32)
        item[feature.key] = torch.from_numpy(values)
        item[f"{feature.key}_is_pad"] = torch.from_numpy(steps >= length)
    return item


def spell_turns(sample: RawSample, theirs: Theirs) -> list[str]:
    """A sample's turns in EO-1's tokens."""
    image = theirs["VISION_START_TOKEN"] + theirs["DEFAULT_IMAGE_TOKEN"] + theirs["VISION_END_TOKEN"]
    state = theirs["STATE_START_TOKEN"] + theirs["DEFAULT_STATE_TOKEN"] + theirs["STATE_END_TOKEN"]
    action = theirs["ACTION_START_TOKEN"] + theirs["DEFAULT_ACTION_TOKEN"] + theirs["ACTION_END_TOKEN"]
    turns: list[str] = []
    speaker = None
    for segment in sample.segments:
        if is_assistants(segment) is not speaker:
            turns.append("")
            speaker = is_assistants(segment)
        marks = {Image: image, State: state, Action: action}
        turns[-1] += segment.text if isinstance(segment, Text) else marks[type(segment)]
    for number in range(0, len(turns), 2):
        turns[number] += theirs["TASK_VLA_TOKEN"] if action in turns[number + 1] else ""
    return turns


def differences(sample: RawSample, row: dict[str, Any], items: list[dict[str, Any]], theirs: Theirs) -> Iterator[str]:
    """What of a sample is not as EO-1 makes it."""
    made = theirs["build_interleaved_prompt"](items, copy.deepcopy(row), sample_actions=False)
    turns = [turn["content"] for turn in theirs["llava_to_openai"](made["conversations"])]
    if spell_turns(sample, theirs) != turns:
        yield "text"
    cameras = [segment.name.rpartition("-")[0] for segment in sample.segments if isinstance(segment, Image)]
    if cameras != [key.rpartition(".")[2] for key in made["image"]]:
        yield "views"
    states = [segment.values for segment in sample.segments if isinstance(segment, State)]
    actions = [segment for segment in sample.segments if isinstance(segment, Action)]
    if not same(states, [values.numpy() for values in made["state"]]):
        yield "states"
    if not same([action.values for action in actions], [values.numpy() for values in made["action"]]):
        yield "actions"
    if not same([~action.valid for action in actions], [padded.numpy() for padded in made["action_is_pad"]]):
        yield "padding"


def same(ours: list[Any], theirs: list[Any]) -> bool:
    """Whether arrays are equal; EO-1 pads the last dim with zeros."""
    if len(ours) != len(theirs):
        return False
    pairs = [(mine, other[..., : mine.shape[-1]]) for mine, other in zip(ours, theirs, strict=True)]
    return all(np.array_equal(mine, other) for mine, other in pairs)


def samples_of(folder: Path) -> Iterator[tuple[int, RawSample]]:
    """Every sample with the line that it was made of."""
    for shard in (shard for split in SPLITS for shard in list_shards(folder, split)):
        content = shard.read_bytes()
        for group in group_members(walk_tar(content, whole=True)):
            meta = parse_meta(shard.name, group, content)
            yield int(str(meta["row"]).rpartition(":")[2]), parse_sample(shard.name, group, content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a conversion was made of."""

    path: Path
    robots: dict[str, Robot | None]
    horizon: int


def open_given(converted: Path, name: str) -> Given:
    """The rows and robots behind one dataset of a `convert_eo1` run."""
    saved = OmegaConf.merge(OmegaConf.structured(ConvertEo1Run), OmegaConf.load(converted / "config.yaml"))
    run = OmegaConf.to_object(saved)
    assert isinstance(run, ConvertEo1Run)
    mixture = load_mixture(Path(run.mixture), Path(run.base), Path(run.lerobot_home) if run.lerobot_home else None)
    robots = robots_of(mixture.robots, {dataset.name: open_robot(run, dataset) for dataset in mixture.robots})
    (path,) = [dataset.path for dataset in mixture.rows if dataset.name == name]
    return Given(path=path, robots=robots, horizon=run.horizon)


def compare(given: Given, shards: Path, theirs: Theirs) -> Counter[str]:
    """How many rows are the same, and how many differ in what."""
    rows = {entry.number: entry.content for entry in read_rows(given.path, find_rows(given.path))}
    counts = Counter(rows=len(rows))
    for number, sample in samples_of(shards):
        row = rows[number] or {}
        items = [item_of(find_frame(given.robots, text), given.horizon) for text in row["lerobot"]]
        found = list(differences(sample, row, items, theirs))
        counts.update(found or ["same"])
        counts["actions"] += sum(isinstance(segment, Action) for segment in sample.segments)
        if found:
            print(f"{given.path}:{number}: {', '.join(found)}")
    return counts


def main() -> int:
    """Entry point; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--converted", type=Path, required=True)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    given = open_given(arguments.converted, arguments.name)
    counts = compare(given, arguments.converted / arguments.name, load_theirs(arguments.checkout))
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    return int(not counts["same"] or bool(counts.keys() - {"rows", "same", "actions"}))


if __name__ == "__main__":
    sys.exit(main())
