"""Small LeRobot datasets written by hand after the format, with pictures that tell which frame they are."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

FPS = 20
LENGTHS = (17, 9, 23)
CAMERAS = ("front", "wrist")
TASKS = ("push the button", "open the door")
SIDES = (64, 96)
SUBTASKS = [[(5, "reach"), (17, "press")], [], [(10, "grasp"), (20, "pull")]]
"""Of each episode: (end_frame, action_text). The last ends before the episode does."""


def coded(episode: int, frame: int, camera: int) -> NDArray[np.uint8]:
    """A picture u8[64, 96, 3] of dark and bright blocks: 14 bits that survive any codec."""
    number = (camera << 12) | (episode << 8) | frame
    bits = np.asarray([(number >> place) & 1 for place in range(16)], np.uint8).reshape(4, 4) * 200 + 28
    blocks = np.kron(bits, np.ones((SIDES[0] // 4, SIDES[1] // 4), np.uint8))
    return np.repeat(blocks[:, :, None], 3, axis=2)


def decode(picture: bytes | NDArray[np.uint8]) -> tuple[int, int, int]:
    """(episode, frame, camera) that a picture shows."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(picture))) if isinstance(picture, bytes) else picture
    height, width = pixels.shape[:2]
    bright = pixels[height // 8 :: height // 4, width // 8 :: width // 4, 0].reshape(-1) > 128
    number = sum(1 << place for place in np.flatnonzero(bright).tolist())
    return (number >> 8) & 15, number & 255, number >> 12


def state_of(episode: int, frame: int) -> list[float]:
    return [episode + frame / 100, frame / 10, -float(frame), 0.5]


def action_of(episode: int, frame: int) -> list[float]:
    return [float(episode), frame * frame / 50, frame / 3, float(frame % 2)]


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def features(video: bool) -> dict[str, object]:
    """The `features` of `info.json`; names are nested as several writers do."""
    number = {"float32": ["timestamp"], "int64": ["frame_index", "episode_index", "index", "task_index"]}
    camera = {"dtype": "video" if video else "image", "shape": [*SIDES, 3], "names": ["height", "width", "channels"]}
    return {
        **{f"observation.images.{name}": camera for name in CAMERAS},
        "observation.state": {"dtype": "float32", "shape": [4], "names": ["x", "y", "z", "gripper"]},
        "observation.state.extra": {"dtype": "float32", "shape": [1], "names": None},
        "action": {"dtype": "float32", "shape": [4], "names": {"motors": ["dx", "dy", "dz", "gripper"]}},
        **{key: {"dtype": dtype, "shape": [1], "names": None} for dtype, keys in number.items() for key in keys},
    }


def rows_of(episode: int, *, video: bool) -> pa.Table:
    """The rows of an episode as a writer's parquet file has them."""
    frames = range(LENGTHS[episode])
    start = sum(LENGTHS[:episode])
    columns: dict[str, pa.Array] = {}
    if not video:
        for place, name in enumerate(CAMERAS):
            pictures = [{"bytes": png(coded(episode, frame, place)), "path": None} for frame in frames]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            columns[f"observation.images.{name}"] = pa.array(pictures, kind)
    columns["observation.state"] = pa.array([state_of(episode, frame) for frame in frames], pa.list_(pa.float32(), 4))
    columns["observation.state.extra"] = pa.array([frame / 7 for frame in frames], pa.float32())
    columns["action"] = pa.array([action_of(episode, frame) for frame in frames], pa.list_(pa.float32()))
    columns["timestamp"] = pa.array([frame / FPS for frame in frames], pa.float32())
    columns["frame_index"] = pa.array(frames, pa.int64())
    columns["episode_index"] = pa.array([episode] * len(frames), pa.int64())
    columns["index"] = pa.array(range(start, start + len(frames)), pa.int64())
    columns["task_index"] = pa.array([episode % 2] * len(frames), pa.int64())
    return pa.table(columns)


def write_video(path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    """H.264 with few key frames and reordered ones, which a careless seek gets wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "12", "bf": "2", "crf": "20"})
        stream.height, stream.width, stream.pix_fmt = *SIDES, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_info(root: Path, version: str, video: bool, paths: dict[str, str]) -> None:
    about = {"codebase_version": version, "robot_type": "sawyer", "fps": FPS, "features": features(video)}
    totals = {"total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS), "total_tasks": len(TASKS)}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(about | totals | {"chunks_size": 2} | paths))


def action_config(episode: int) -> list[dict[str, object]]:
    ends = [0, *(end for end, _ in SUBTASKS[episode])]
    return [
        {"start_frame": start, "end_frame": end, "action_text": text}
        for start, (end, text) in zip(ends, SUBTASKS[episode], strict=False)
    ]


def write_v2(root: Path, *, video: bool, version: str = "v2.1") -> Path:
    """A file per episode; two episodes to a folder."""
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    videos = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    write_info(root, version, video, {"data_path": data, "video_path": videos})
    lines = []
    for episode, length in enumerate(LENGTHS):
        path = root / data.format(episode_chunk=episode // 2, episode_index=episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows_of(episode, video=video), path)
        for place, name in enumerate(CAMERAS if video else ()):
            key = f"observation.images.{name}"
            file = root / videos.format(episode_chunk=episode // 2, episode_index=episode, video_key=key)
            write_video(file, [coded(episode, frame, place) for frame in range(length)])
        about = {"episode_index": episode, "tasks": [TASKS[episode % 2]], "length": length}
        lines.append(json.dumps(about | {"action_config": action_config(episode)}))
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    tasks = [json.dumps({"task_index": place, "task": task}) for place, task in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
    return root


def write_v3(root: Path, *, video: bool) -> Path:
    """All rows in two files, all frames of a camera in one; a row group for each episode in the first file."""
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    videos = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    write_info(root, "v3.0", video, {"data_path": data, "video_path": videos})
    (root / "data/chunk-000").mkdir(parents=True)
    tables = [rows_of(episode, video=video) for episode in range(len(LENGTHS))]
    with pq.ParquetWriter(root / "data/chunk-000/file-000.parquet", tables[0].schema) as writer:
        for table in tables[:2]:
            writer.write_table(table)
    pq.write_table(tables[2], root / "data/chunk-000/file-001.parquet")
    for place, name in enumerate(CAMERAS if video else ()):
        frames = [(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)]
        file = root / videos.format(video_key=f"observation.images.{name}", chunk_index=0, file_index=0)
        write_video(file, [coded(*at, place) for at in frames])
    rows = [episode_row(episode, video=video) for episode in range(len(LENGTHS))]
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), root / "meta/tasks.parquet")
    return root


def episode_row(episode: int, *, video: bool) -> dict[str, object]:
    start = sum(LENGTHS[:episode])
    row: dict[str, object] = {
        "episode_index": episode,
        "tasks": [TASKS[episode % 2]],
        "length": LENGTHS[episode],
        "data/chunk_index": 0,
        "data/file_index": episode // 2,
        "dataset_from_index": start,
        "dataset_to_index": start + LENGTHS[episode],
        "stats/action/min": [0.0],
        "action_config": action_config(episode),
    }
    for name in CAMERAS if video else ():
        stem = f"videos/observation.images.{name}"
        row |= {f"{stem}/chunk_index": 0, f"{stem}/file_index": 0}
        row |= {f"{stem}/from_timestamp": start / FPS, f"{stem}/to_timestamp": (start + LENGTHS[episode]) / FPS}
    return row
