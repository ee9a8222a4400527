"""Frames of a video file by their times, each the right one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray

TOLERANCE = 0.1
"""Of the time between two frames: a frame is the wanted one if it is shown so near to the wanted time."""
SEEK_GAP = 64
"""Frames; to skip more, seeking a key frame is faster than decoding what lies between."""

logging.getLogger("libav").setLevel(logging.ERROR)


def read_frames(path: Path, times: Sequence[float], fps: float) -> Iterator[NDArray[np.uint8]]:
    """The frames that a file shows at `times`, as RGB pixels u8[h, w, 3].

    Times are compared with the presentation times in the file, so that neither key frames nor reordered frames matter.

    Args:
        times: seconds, in growing order.

    Raises:
        ValueError: the file is missing or damaged, or shows no frame at one of the times; names them.
    """
    if not path.is_file():
        raise ValueError(f"video is missing: {path}")
    if not times:
        return
    try:
        with av.open(str(path)) as container:
            yield from _Reader(path, container, fps).read(times)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"video cannot be read: {path}: {error}") from error


class _Reader:
    """Walks through one open file."""

    def __init__(self, path: Path, container: InputContainer, fps: float) -> None:
        self.path, self.container, self.fps = path, container, fps
        self.stream = container.streams.video[0]
        # Many processes read at once.
        self.stream.codec_context.thread_count = 1

    def read(self, times: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
        tolerance = TOLERANCE / self.fps
        frames, shown = self._frames_from(times[0])
        frame, at = next(frames, (None, 0.0))
        for time in times:
            if time - shown > SEEK_GAP / self.fps and at < time - tolerance:
                frames, shown = self._frames_from(time)
                frame, at = next(frames, (None, 0.0))
            while frame is not None and at < time - tolerance:
                frame, at = next(frames, (None, 0.0))
            if frame is None or at > time + tolerance:
                raise ValueError(f"video has no frame at {time:.4f} s: {self.path}")
            shown = at
            yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)

    def _frames_from(self, time: float) -> tuple[Iterator[tuple[VideoFrame, float]], float]:
        """Frames with their times, from the last key frame before `time` on."""
        base = self.stream.time_base
        assert base is not None
        # One frame early: some files have a key frame's packet begin a little after its time.
        self.container.seek(round((time - 1 / self.fps) / base), stream=self.stream)
        frames = (
            (frame, float(frame.pts * base)) for frame in self.container.decode(self.stream) if frame.pts is not None
        )
        return frames, time
