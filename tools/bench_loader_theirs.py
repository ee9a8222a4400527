"""LeRobot's side of `bench_loader.py`, run by an interpreter that has it; nothing of ours is imported.

    python tools/bench_loader_theirs.py DATASET SHARDS WORKERS [MODULE]

Writes the frames of SHARDS into DATASET with LeRobot's own writer, once, then reads number after number of samples
from standard input and gives as many through torch's loader, shuffled, with chunks of actions. MODULE is imported
first, as a stand-in for what LeRobot imports but a CPU does not have.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

FPS = 20
HORIZON = 16
EPISODE = 40
CAMERAS = ("front", "wrist")


def frames(shards: Path) -> Iterator[dict[str, Any]]:
    """What LeRobot's writer takes, frame by frame."""
    for shard in sorted(shards.glob("train-*.tar")):
        gathered: dict[str, bytes] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                gathered[member.name.split(".", 1)[1]] = file.read()
                if member.name.endswith(".json"):
                    yield frame_of(gathered)
                    gathered = {}


def frame_of(members: dict[str, bytes]) -> dict[str, Any]:
    """One sample's members as a frame."""
    texts = [entry["text"] for entry in json.loads(members["json"])["segments"] if "text" in entry]
    pictures = {
        f"observation.images.{name}": np.asarray(PIL.Image.open(io.BytesIO(members[f"{name}.jpg"]))) for name in CAMERAS
    }
    state, action = (np.load(io.BytesIO(members[name])) for name in ("state.npy", "action.npy"))
    return {**pictures, "observation.state": state, "action": action[0], "task": texts[0]}


def write(library: Any, root: Path, shards: Path) -> None:
    """A dataset of films, episodes of 40 frames."""
    vector = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]}
    camera = {"dtype": "video", "shape": (480, 640, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector}
    features |= {f"observation.images.{name}": dict(camera) for name in CAMERAS}
    made = library.create("bench/loader", FPS, features, root=root, robot_type="sawyer", use_videos=True)
    for number, frame in enumerate(frames(shards)):
        made.add_frame(frame)
        if number % EPISODE == EPISODE - 1:
            made.save_episode()
    made.finalize()


def endless(loader: Any) -> Iterator[Any]:
    """Sample after sample, pass after pass."""
    while True:
        yield from loader


def one_thread(_worker: int) -> None:
    """What each worker begins with."""
    torch.set_num_threads(1)


def main() -> None:
    """Write once, then give samples."""
    root, shards, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 4 and sys.argv[4]:
        importlib.import_module(sys.argv[4])
    torch.set_num_threads(1)
    library = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    if not root.is_dir():
        write(library, root, shards)
    times = [step / FPS for step in range(HORIZON)]
    dataset = library("bench/loader", root=root, delta_timestamps={"action": times})
    options = {"prefetch_factor": 16, "persistent_workers": True} if workers else {}
    given = endless(
        torch.utils.data.DataLoader(
            dataset, batch_size=None, shuffle=True, num_workers=workers, worker_init_fn=one_thread, **options
        )
    )
    print("done", flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            next(given)
        print("done", flush=True)


if __name__ == "__main__":
    main()
