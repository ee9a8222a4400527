"""LeRobot's side of `compare_lerobot_data.py`, run by an interpreter that has it; nothing of ours is imported.

    python tools/compare_lerobot_data_theirs.py write FOLDER [MODULE]
    python tools/compare_lerobot_data_theirs.py read FOLDER/DATASET [MODULE]

`write` makes the datasets FOLDER/image and FOLDER/video in the version that this LeRobot writes, with what went in
beside them (`truth.npz`). `read` reads a dataset with LeRobot's own loader into DATASET.npz.
MODULE is imported first, as a stand-in for what LeRobot imports but a CPU does not have.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FPS = 20
LENGTHS = (17, 9, 23)
CAMERAS = ("front", "wrist")
SIDES = (64, 96)
TASKS = ("push the button", "open the door")
HORIZON = 8


def picture(episode: int, frame: int, camera: int) -> Any:
    """A picture u8[64, 96, 3] of blocks that tell episode, frame and camera, on a slope of colours."""
    number = (camera << 12) | (episode << 8) | frame
    bits = np.asarray([(number >> place) & 1 for place in range(16)]).reshape(4, 4) * 150 + 50
    blocks = np.kron(bits, np.ones((SIDES[0] // 4, SIDES[1] // 4)))
    slope = np.linspace(0, 50, SIDES[1])[None, :, None] * np.asarray([1.0, 0.5, 0.0])
    return (blocks[:, :, None] + slope).astype(np.uint8)


def features(video: bool) -> dict[str, Any]:
    """What a frame holds."""
    camera = {"dtype": "video" if video else "image", "shape": (*SIDES, 3), "names": ["height", "width", "channels"]}
    return {
        **{f"observation.images.{name}": dict(camera) for name in CAMERAS},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "action": {"dtype": "float32", "shape": (4,), "names": {"motors": ["dx", "dy", "dz", "gripper"]}},
    }


def write(folder: Path) -> None:
    """Make both datasets."""
    library = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    rows = np.random.default_rng(0).normal(size=(2, sum(LENGTHS), 4)).astype(np.float32)
    for video in (False, True):
        root = folder / ("video" if video else "image")
        made = library.create("compare/data", FPS, features(video), root=root, robot_type="sawyer", use_videos=video)
        takes_task = "task" in inspect.signature(made.add_frame).parameters
        index = 0
        for episode, length in enumerate(LENGTHS):
            for frame in range(length):
                entry = {"observation.state": rows[0, index], "action": rows[1, index]}
                for place, name in enumerate(CAMERAS):
                    entry[f"observation.images.{name}"] = picture(episode, frame, place)
                task = TASKS[episode % 2]
                # LeRobot 0.3 has the task beside the frame, later ones inside of it.
                made.add_frame(entry, task) if takes_task else made.add_frame(entry | {"task": task})
                index += 1
            made.save_episode()
        if "finalize" in dir(made):
            made.finalize()
    pictures = [
        [picture(episode, frame, place) for place in range(len(CAMERAS))]
        for episode, length in enumerate(LENGTHS)
        for frame in range(length)
    ]
    tasks = [TASKS[episode % 2] for episode, length in enumerate(LENGTHS) for _ in range(length)]
    np.savez(folder / "truth.npz", states=rows[0], actions=rows[1], pictures=np.stack(pictures), tasks=tasks)
    (folder / "versions.json").write_text(json.dumps({"lerobot": version("lerobot")}))


def read(root: Path) -> None:
    """Read a dataset frame by frame, as its training does."""
    library = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    steps = {"action": [step / FPS for step in range(HORIZON)]}
    data = library("compare/data", root=root, delta_timestamps=steps, video_backend="pyav")
    frames = [data[place] for place in range(len(data))]
    cameras = sorted(key for key in frames[0] if key.startswith("observation.images."))
    pictures = [np.stack([frame[key].permute(1, 2, 0).numpy() for key in cameras]) for frame in frames]
    np.savez(
        root.with_suffix(".npz"),
        states=np.stack([frame["observation.state"].numpy() for frame in frames]),
        actions=np.stack([frame["action"].numpy() for frame in frames]),
        valid=~np.stack([frame["action_is_pad"].numpy() for frame in frames]),
        pictures=(np.stack(pictures) * 255).round().astype(np.uint8),
        tasks=[frame["task"] for frame in frames],
        episodes=np.asarray([int(frame["episode_index"]) for frame in frames]),
        means=np.asarray(data.meta.stats["action"]["mean"]),
    )


def main() -> None:
    """Do one of the two."""
    for module in sys.argv[3:]:
        importlib.import_module(module)
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    main()
