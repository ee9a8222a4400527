"""Compare our reading and writing of LeRobot datasets with LeRobot's own.

    python tools/compare_lerobot_data.py --python PYTHON [--first MODULE]

PYTHON is an interpreter with LeRobot: 0.4 or newer for datasets of version 3.0, 0.3 for 2.1. It writes two small
datasets, one with pictures in parquet files and one with videos. Ours reads both and turns them into shards; where the
peer reads version 3.0, the shards are exported again, both ways, and the peer reads the exports.

Numbers, tasks, masks and pictures of an image column must be equal. Pixels of a video must be those that the peer
decodes from the same file, and near what went in, with the right number of each frame.

LeRobot needs a torchvision; where none is built for this machine's torch, `--first` names a module on PYTHONPATH that
declares the missing operators and is imported before anything else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray

from flagscale_vla.config.convert_lerobot import ConvertLeRobotRun
from flagscale_vla.config.export_lerobot import ExportLeRobotRun
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.data.convert.pictures import decode_picture
from flagscale_vla.data.lerobot import convert, export
from flagscale_vla.data.lerobot.dataset import LeRobotDataset
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.shards import list_shards
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import Action, Image, State, Text

ROOT = Path(__file__).parents[1]
HORIZON = 8
NEAR = 6.0
"""Mean difference of 8-bit values that a video may have from what went in."""
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table."""

    what: str
    quantity: str
    difference: float
    bound: float


def run_theirs(python: str, verb: str, place: Path, first: Sequence[str]) -> str:
    """Run the peer's side; what it said if it failed, or nothing."""
    command = [python, str(ROOT / "tools/compare_lerobot_data_theirs.py"), verb, str(place), *first]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it said nothing"])[-1]


def settings(name: str, *overrides: str) -> object:
    """A job's settings."""
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return settings_of(compose(name, list(overrides)))


def to_shards(root: Path, folder: Path) -> None:
    """Our `convert_lerobot`."""
    common = (f"source={root}", f"output={folder}", f"horizon={HORIZON}", "processes=1", "heldout_share=0")
    run = settings("convert_lerobot", *common, "name=compare", "samples_per_shard=30", "jpeg_quality=100")
    assert isinstance(run, ConvertLeRobotRun)
    convert.run(run)


def to_dataset(shards: Path, folder: Path, pictures: str) -> None:
    """Our `export_lerobot`."""
    common = (
        f"data.shards={shards}",
        f"output={folder}",
        f"data.cache.folder={folder.parent / 'cache'}",
        "processes=1",
    )
    run = settings("export_lerobot", *common, f"pictures={pictures}", "frames_per_file=30")
    assert isinstance(run, ExportLeRobotRun)
    export.run(run)


def read_shards(folder: Path) -> Arrays:
    """What the samples hold, in the order of episodes and frames, as the peer's side tells it."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for shard in list_shards(folder, "train"):
        content = shard.read_bytes()
        for group in group_members(walk_tar(content, whole=True)):
            meta = parse_meta(shard.name, group, content)
            entry: dict[str, Any] = {"pictures": []}
            for segment in parse_sample(shard.name, group, content).segments:
                match segment:
                    case Image(encoded=encoded):
                        entry["pictures"].append(decode_picture(encoded))
                    case State(values=values):
                        entry["states"] = values
                    case Text(text=text):
                        entry["tasks"] = text
                    case Action(values=values, valid=valid):
                        entry["actions"], entry["valid"] = values, valid
            found[meta["episode"], meta["frame"]] = entry
    names = ("states", "actions", "valid", "pictures", "tasks")
    return {name: np.asarray([found[key][name] for key in sorted(found)]) for name in names}


def read_frames(root: Path) -> NDArray[np.uint8]:
    """Every picture u8[n, cameras, h, w, 3] by our reader, as the file holds it."""
    dataset = LeRobotDataset.open(root)
    keys = sorted(key for key, feature in dataset.features.items() if feature.is_picture)
    columns = [
        [
            decode_picture(frame) if isinstance(frame, bytes) else frame
            for episode in dataset.episodes.values()
            for frame in dataset.frames(episode.index, key, range(episode.length))
        ]
        for key in keys
    ]
    return np.stack([np.stack(column) for column in columns], axis=1)


def codes(pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The numbers [n, cameras] that pictures show."""
    height, width = pictures.shape[2:4]
    bright = pictures[:, :, height // 8 :: height // 4, width // 8 :: width // 4, 2] > 125
    return (bright.reshape(*bright.shape[:2], 16) << np.arange(16)).sum(axis=2)


def gap(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest difference; for words the share of those that differ, and infinity where shapes do."""
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.dtype.kind in "Ub":
        return float((ours != theirs).mean())
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())


def compare_rows(what: str, ours: Arrays, theirs: Arrays, names: Sequence[str]) -> list[Line]:
    """Lines that must be equal."""
    return [Line(what=what, quantity=name, difference=gap(ours[name], theirs[name]), bound=0.0) for name in names]


def compare_truth(what: str, pictures: NDArray[np.uint8], truth: Arrays, bound: float) -> list[Line]:
    """Pictures against what went in: the right frame each, and near it."""
    wrong = float((codes(pictures) != codes(truth["pictures"])).sum())
    near = float(np.abs(pictures.astype(int) - truth["pictures"].astype(int)).mean())
    return [
        Line(what=what, quantity="frames that are others", difference=wrong, bound=0.0),
        Line(what=what, quantity="pictures, mean difference from what went in", difference=near, bound=bound),
    ]


def compare_reading(options: argparse.Namespace, work: Path, name: str) -> tuple[list[Line], list[str]]:
    """Our reading of a dataset that the peer wrote."""
    truth = dict(np.load(work / "truth.npz"))
    to_shards(work / name, work / f"{name}_shards")
    ours = dict(read_shards(work / f"{name}_shards"))
    lines = compare_rows(
        f"theirs, {name}", ours | {"actions": ours["actions"][:, 0]}, truth, ("states", "actions", "tasks")
    )
    pictures = read_frames(work / name)
    lines += compare_truth(f"theirs, {name}", pictures, truth, NEAR if name == "video" else 0.0)
    said = run_theirs(options.python, "read", work / name, options.first)
    if said:
        return lines, [f"LeRobot cannot read its own {name} dataset here: {said}"]
    theirs = dict(np.load(work / f"{name}.npz"))
    what = f"theirs, {name}, read by both"
    lines += compare_rows(what, ours, theirs, ("states", "actions", "valid", "tasks"))
    return [*lines, *compare_rows(what, {"pictures": pictures}, theirs, ("pictures",))], []


def compare_writing(options: argparse.Namespace, work: Path, name: str) -> tuple[list[Line], list[str]]:
    """The peer's reading of a dataset that we wrote."""
    truth = dict(np.load(work / "truth.npz"))
    to_dataset(work / "image_shards", work / f"ours_{name}", name)
    said = run_theirs(options.python, "read", work / f"ours_{name}", options.first)
    if said:
        return [], [f"LeRobot cannot read our {name} dataset: {said}"]
    theirs = dict(np.load(work / f"ours_{name}.npz"))
    ours = dict(read_shards(work / "image_shards"))
    lines = compare_rows(f"ours, {name}, read by LeRobot", ours, theirs, ("states", "actions", "valid", "tasks"))
    lines += compare_truth(
        f"ours, {name}, read by LeRobot", theirs["pictures"], truth, NEAR if name == "video" else 0.0
    )
    mean = gap(theirs["means"], truth["actions"].astype(np.float64).mean(axis=0))
    return [
        *lines,
        Line(what=f"ours, {name}, read by LeRobot", quantity="mean action", difference=mean, bound=1e-6),
    ], []


def tell(lines: Sequence[Line], notes: Sequence[str], versions: str) -> bool:
    """Print the table; whether all hold."""
    for line in lines:
        verdict = "ok" if line.difference <= line.bound else "DIFFERS"
        print(f"{line.what:34} {line.quantity:46} {line.difference:10.4g} <= {line.bound:<6g} {verdict}")
    for note in notes:
        print(note)
    print(versions)
    return all(line.difference <= line.bound for line in lines)


def run(options: argparse.Namespace) -> bool:
    """All comparisons; whether all hold.

    Raises:
        ValueError: the peer cannot write, or we cannot read.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        said = run_theirs(options.python, "write", work, options.first)
        if said:
            raise ValueError(f"LeRobot cannot write a dataset with {options.python}: {said}")
        steps = [(compare_reading, "image"), (compare_reading, "video")]
        version = json.loads((work / "image/meta/info.json").read_text())["codebase_version"]
        if version == "v3.0":
            steps += [(compare_writing, "image"), (compare_writing, "video")]
        results = [step(options, work, name) for step, name in steps]
        lines = [line for found, _ in results for line in found]
        notes = [note for _, found in results for note in found]
        return tell(lines, [*notes, f"datasets of version {version}"], (work / "versions.json").read_text())


def main() -> None:
    """Run it; what cannot be run is told in a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter that has LeRobot")
    parser.add_argument("--first", action="append", default=[], help="a module that LeRobot's process imports first")
    try:
        sys.exit(not run(parser.parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
