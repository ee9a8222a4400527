"""One data file of a LeRobot dataset with its videos: some episodes out of shards."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flagscale_vla.config.export_lerobot import VideoCodec
from flagscale_vla.data.convert.pictures import decode_picture
from flagscale_vla.data.lerobot.layout import ACTION_KEY, STATE_KEY, Layout
from flagscale_vla.data.lerobot.stats import Stats, histogram, number_stats, picture_stats, sampled
from flagscale_vla.data.lerobot.survey import FrameEntry
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.store import Store
from flagscale_vla.records import Action, Image, State
from flagscale_vla.reports.outputs import replace_text

ENCODERS = {VideoCodec.h264: "libx264", VideoCodec.av1: "libsvtav1"}
# The same bytes in every process and on every machine: one thread, and for x264 none of the kernels whose rounding
# depends on the processor. With those, a small video in some hundreds differed from its twin of the same process.
SAME_BYTES = {
    VideoCodec.h264: {"bf": "0", "preset": "medium", "x264-params": "cpu-independent=1"},
    VideoCodec.av1: {"svtav1-params": "lp=1"},
}
LOGS = "files"
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """An episode and its place in the dataset."""

    index: int
    start: int
    """index over the dataset of its first frame"""
    frames: tuple[FrameEntry, ...]
    task_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """What one data file holds."""

    number: int
    episodes: tuple[EpisodePlan, ...]


@dataclass(slots=True, kw_only=True)
class FileLog:
    """What was written of a file."""

    number: int
    plan: str
    """hash of the plan"""
    starts: list[float] = field(default_factory=list)
    """seconds in the videos at which each episode begins"""
    stats: list[dict[str, Stats]] = field(default_factory=list)
    """of each episode, by column"""
    histograms: dict[str, list[list[int]]] = field(default_factory=dict)
    """of each camera, over all episodes: [3][256]"""
    pictures: int = 0
    """frames that the histograms count"""
    seconds: float = 0.0


def log_path(root: Path, number: int) -> Path:
    """Where a file's log lies; the file is written when it is there."""
    return root / LOGS / f"{number:06d}.json"


def load_log(root: Path, number: int) -> FileLog:
    """The log of a file that is written."""
    return FileLog(**json.loads(log_path(root, number).read_text(encoding="utf-8")))


def write_file(store: Store, layout: Layout, job: tuple[FilePlan, str]) -> FileLog:
    """Write one data file and its videos, each whole, and then its log.

    Args:
        job: the plan and its hash.

    Raises:
        BadSampleError: a sample has changed since the survey.
        ValueError: a picture cannot be decoded; names its sample.
    """
    begin = time.perf_counter()
    plan, digest = job
    private = layout.root / UNFINISHED / f"{os.getpid()}-{plan.number}"
    files = [layout.data_file(plan.number), *(layout.video_file(key, plan.number) for key in layout.videos)]
    for file in files:
        (private / file).parent.mkdir(parents=True, exist_ok=True)
        (layout.root / file).parent.mkdir(parents=True, exist_ok=True)
    with _FileWriter(store, layout, private, plan.number) as writer:
        log = FileLog(number=plan.number, plan=digest)
        for episode in plan.episodes:
            writer.write(episode, log)
    log.histograms = {key: counts.tolist() for key, counts in writer.histograms.items()}
    for file in files:
        os.replace(private / file, layout.root / file)
    shutil.rmtree(private, ignore_errors=True)
    log.seconds = round(time.perf_counter() - begin, 3)
    (layout.root / LOGS).mkdir(exist_ok=True)
    replace_text(log_path(layout.root, plan.number), json.dumps(asdict(log)))
    return log


class _FileWriter:
    """The open parquet file and videos."""

    def __init__(self, store: Store, layout: Layout, folder: Path, number: int) -> None:
        self.store, self.layout = store, layout
        self.table = pq.ParquetWriter(folder / layout.data_file(number), layout.schema(), compression="snappy")
        self.videos = {key: VideoWriter(folder / layout.video_file(key, number), layout, key) for key in layout.videos}
        self.histograms = {key: np.zeros((3, 256), np.int64) for key in layout.cameras}
        self.frames = 0

    def __enter__(self) -> _FileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.table.close()
        for video in self.videos.values():
            video.close()

    def write(self, episode: EpisodePlan, log: FileLog) -> None:
        """One episode: a row group, and the next frames of the videos."""
        counts = {key: np.zeros((3, 256), np.int64) for key in self.histograms}
        chosen = sampled(len(episode.frames))
        columns: dict[str, list[Any]] = {name: [] for name in self.layout.schema().names}
        for place, frame in enumerate(episode.frames):
            self._frame(frame, columns, counts if place in chosen else {})
        numbers = {key: np.stack(columns[key]) for key in (STATE_KEY, ACTION_KEY)} | self._counters(episode)
        self._append(columns, numbers)
        stats = {key: number_stats(values.reshape(len(values), -1)) for key, values in numbers.items()}
        log.stats.append(stats | {key: picture_stats(found, len(chosen)) for key, found in counts.items()})
        log.starts.append(self.frames / self.layout.robot.fps)
        log.pictures += len(chosen)
        self.frames += len(episode.frames)
        for key, found in counts.items():
            self.histograms[key] += found

    def _append(self, columns: dict[str, list[Any]], numbers: dict[str, NDArray[Any]]) -> None:
        """A row group of pictures, if they are columns, and numbers."""
        arrays: dict[str, Any] = {key: columns[key] for key in self.histograms if key in columns}
        for key, values in numbers.items():
            arrays[key] = list(values) if values.ndim > 1 and values.shape[1] > 1 else values.reshape(-1)
        self.table.write_table(pa.table(arrays, schema=self.layout.schema()))

    def _frame(self, frame: FrameEntry, columns: dict[str, list[Any]], counts: dict[str, NDArray[np.int64]]) -> None:
        sample = read_sample(self.store, frame.place)
        keys = {name: key for key, (name, _, _) in self.layout.cameras.items()}
        for segment in sample.segments:
            match segment:
                case Image(name=name, encoded=encoded):
                    self._picture(keys[name], encoded, sample.key, columns, counts)
                case State(values=values):
                    columns[STATE_KEY].append(values)
                case Action(values=values):
                    columns[ACTION_KEY].append(values[0])

    def _picture(
        self,
        key: str,
        encoded: bytes,
        sample: str,
        columns: dict[str, list[Any]],
        counts: dict[str, NDArray[np.int64]],
    ) -> None:
        if key in columns:
            columns[key].append({"bytes": encoded, "path": None})
        if key not in counts and key not in self.videos:
            return
        try:
            pixels = decode_picture(encoded)
        except ValueError as error:
            raise ValueError(f"{sample}: {error}; mend or remove its shard") from error
        if key in self.videos:
            self.videos[key].write(pixels)
        if key in counts:
            counts[key] += histogram(pixels)

    def _counters(self, episode: EpisodePlan) -> dict[str, NDArray[Any]]:
        frames = np.arange(len(episode.frames), dtype=np.int64)
        return {
            "timestamp": (frames / self.layout.robot.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full_like(frames, episode.index),
            "index": frames + episode.start,
            "task_index": np.asarray(episode.task_indices, np.int64),
        }


class VideoWriter:
    """An mp4 file that is being written, frame by frame.

    Args:
        path: of the file.
        layout: of the dataset.
        key: the camera's column.
    """

    def __init__(self, path: Path, layout: Layout, key: str) -> None:
        _, height, width = layout.cameras[key]
        config = layout.video
        options = {"crf": str(config.crf), "g": str(config.gop)}
        options |= SAME_BYTES[config.codec]
        self.container = av.open(str(path), "w", options={"movflags": "faststart"})
        self.stream = self.container.add_stream(ENCODERS[config.codec], rate=layout.robot.fps, options=options)
        self.stream.height, self.stream.width, self.stream.pix_fmt = height, width, "yuv420p"
        self.stream.codec_context.thread_count = 1
        self.stream.codec_context.time_base = Fraction(1, layout.robot.fps)

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Append a picture u8[h, w, 3]."""
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def close(self) -> None:
        """Write what is still held back, and the end."""
        self.container.mux(self.stream.encode())
        self.container.close()


def plan_files(episodes: Sequence[EpisodePlan], frames_per_file: int) -> list[FilePlan]:
    """Whole episodes in order, as many to a file as `frames_per_file` lets in."""
    groups: list[list[EpisodePlan]] = []
    count = 0
    for episode in episodes:
        if not groups or count + len(episode.frames) > frames_per_file:
            groups.append([])
            count = 0
        groups[-1].append(episode)
        count += len(episode.frames)
    return [FilePlan(number=number, episodes=tuple(group)) for number, group in enumerate(groups)]
