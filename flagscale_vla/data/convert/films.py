"""Frames of a film at a low rate, as a model that answers questions about it sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.convert_conversations import FilmConfig
from flagscale_vla.data.convert.coordinates import Size
from flagscale_vla.data.convert.pictures import PictureRule
from flagscale_vla.data.convert.turns import RowError
from flagscale_vla.records import Video

PAIR = 2
"""Frames in one step of time; an odd number is made even."""


def read_film(path: Path, name: str, film: FilmConfig, rule: PictureRule) -> tuple[Video, Size]:
    """The film with the frames that are to be stored, and its own width and height.

    Raises:
        RowError: it cannot be decoded, or has fewer than two frames.
    """
    if not path.is_file():
        raise RowError(f"film is missing: {path}")
    try:
        total, rate = measure(path)
        wanted = choose_frames(total, rate, film)
        frames, size = encode_frames(path, wanted, rule)
    except (av.FFmpegError, IndexError) as error:
        raise RowError(f"film cannot be read: {path}: {error}") from error
    if len(frames) != len(wanted):
        raise RowError(f"film cannot be read: {path}: {len(frames)} of {len(wanted)} frames could be decoded")
    return Video(name=name, frames=frames, fps=len(wanted) / total * rate), size


def encode_frames(path: Path, wanted: list[int], rule: PictureRule) -> tuple[tuple[bytes, ...], Size]:
    """The chosen frames as they are stored, and the width and height they had."""
    frames, size = [], (0, 0)
    for pixels in decode_frames(path, wanted):
        size = (pixels.shape[1], pixels.shape[0])
        frames.append(rule.encode(pixels))
    return tuple(frames), size


def measure(path: Path) -> tuple[int, float]:
    """How many frames a film has, and how many of them make a second. They are counted: heads are often wrong."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        total = sum(packet.size > 0 for packet in container.demux(stream))
    return total, float(rate) if rate else 0.0


def choose_frames(total: int, rate: float, film: FilmConfig) -> list[int]:
    """Indices of the frames that are stored: an even number, evenly spread from the first to the last.

    Raises:
        RowError: there are fewer than two frames, or no rate.
    """
    if total < PAIR or rate <= 0:
        raise RowError(f"film is too short: {total} frames at {rate:g} a second")
    wanted = min(max(total / rate * film.fps, film.min_frames), film.max_frames, total)
    count = max(PAIR, math.floor(wanted / PAIR) * PAIR)
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


def decode_frames(path: Path, wanted: list[int]) -> Iterator[NDArray[np.uint8]]:
    """The frames u8[h, w, 3] at these ascending indices; the rest are decoded but not converted."""
    places = iter(wanted)
    place = next(places, None)
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            while place == number:
                yield frame.to_ndarray(format="rgb24")
                place = next(places, None)
            if place is None:
                return
