"""A sample's pictures and films on their grids of patches: read, perhaps changed, and counted without decoding.

A film is Qwen2.5-VL's: every two frames make one step of time, an odd last one is repeated (Qwen2.5-VL report, section
2.1.1). A picture is a film of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from flagscale_vla.config.image import ImageConfig
from flagscale_vla.config.model import PATCH_FRAMES, PATCH_MERGE, PATCH_PIXELS
from flagscale_vla.data import decoders
from flagscale_vla.data.augment import Change, Kind, allowed, apply, draw
from flagscale_vla.data.decoders import Picture
from flagscale_vla.data.draws import Draw, stream
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.images import Pixels
from flagscale_vla.data.shards import PNG_MAGIC
from flagscale_vla.records import Image, Segment, Video

Grid = tuple[int, int, int]
"""Patches along (time, height, width)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What the model is told of a picture, or of a film."""

    frames: int
    """1 for a picture"""
    height: int
    """of a frame on its grid of patches"""
    width: int
    stride: float
    """rotary time positions from one step of time to the next; means nothing for a picture"""

    @property
    def grid(self) -> Grid:
        """Patches along (time, height, width)."""
        return time_steps(self.frames), self.height // PATCH_PIXELS, self.width // PATCH_PIXELS

    @property
    def nbytes(self) -> int:
        """Of all frames' pixels."""
        return self.frames * self.height * self.width * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A picture or film, of which headers were read."""

    name: str
    """of the picture or film in its sample"""
    clip: Clip
    frames: tuple[Picture, ...]
    changes: tuple[Change, ...] = ()
    """that training makes; all frames share them"""


def first_frames(pixels: Pixels, frames: Sequence[int], grids: Sequence[Grid]) -> Iterator[Pixels]:
    """The first frame u8[h, w, 3] of each step of time, from what a row carries."""
    start = 0
    for count, (_, rows, columns) in zip(frames, grids, strict=True):
        shape = (count, rows * PATCH_PIXELS, columns * PATCH_PIXELS, 3)
        clip = pixels[start : start + math.prod(shape)].reshape(shape)
        yield from clip[::PATCH_FRAMES]
        start += clip.size


def time_steps(frames: int) -> int:
    """Steps of time of a film of so many frames."""
    return -(-frames // PATCH_FRAMES)


def merged_tokens(grid: Grid) -> int:
    """Language tokens of a picture or film."""
    return grid[0] * grid[1] * grid[2] // PATCH_MERGE**2


def is_seen(segment: Segment) -> bool:
    """Whether a segment is a picture or a film."""
    return isinstance(segment, Image | Video)


class PictureReader:
    """Turns pictures and films of samples, and a robot's cameras, into clips; one for training and policy.

    Args:
        config: sizes, back end and changes.

    Raises:
        ConfigError: the back end is not installed.
    """

    def __init__(self, config: ImageConfig) -> None:
        self.config = config
        decoders.open_backend(config.decoder)

    def open(self, key: str, segments: Iterable[Segment]) -> list[Opened]:
        """All pictures and films of a sample, in order; only headers are read.

        Raises:
            BadSampleError: one is no picture, is too large or too long, or a film's frames differ in size.
        """
        return [self._open_one(key, segment) for segment in segments if isinstance(segment, Image | Video)]

    def change(
        self, key: str, segments: Sequence[Segment], opened: Sequence[Opened], seed: int, epoch: int
    ) -> list[Opened]:
        """The same with the changes that training makes; see `data.augment`."""
        kinds = allowed(segments)
        return [self._change_one(key, one, kinds, seed, epoch) for one in opened] if kinds else list(opened)

    def read(self, opened: Iterable[Opened], room: Pixels) -> None:
        """Decode into `room`, u8[their nbytes], one frame [h, w, 3] after another, changed.

        Between two pictures a processor's caches lose all else, so that there is as little else as can be.

        Raises:
            BadSampleError: one of them cannot be decoded.
        """
        start = 0
        for one in opened:
            for frame in one.frames:
                pixels = apply(decoders.read(frame, self.config.decoder), one.changes)
                room[start : start + pixels.size].reshape(pixels.shape)[:] = pixels
                start += pixels.size

    def fit(self, name: str, pixels: Pixels) -> Pixels:
        """What a camera sees, u8[h, w, 3], on its grid of patches."""
        return decoders.fit(name, pixels, self.config, self.config.decoder)

    def _change_one(self, key: str, opened: Opened, kinds: frozenset[Kind], seed: int, epoch: int) -> Opened:
        generator = stream(seed, epoch, f"{key}/{opened.name}", Draw.augment)
        return replace(opened, changes=tuple(draw(self.config.augment, kinds, generator)))

    def _open_one(self, key: str, segment: Image | Video) -> Opened:
        if isinstance(segment, Image):
            picture = decoders.inspect(member_name(key, segment.name, segment.encoded), segment.encoded, self.config)
            return _opened(segment.name, (picture,), stride=1.0)
        limits = self.config.video.limits(len(segment.frames))
        frames = tuple(decoders.inspect(name, encoded, limits) for name, encoded in frame_names(key, segment))
        _check_sides(f"{key}.{segment.name}", {frame.sides for frame in frames})
        return _opened(segment.name, frames, stride=self.config.video.stride(segment.fps))


def _opened(name: str, frames: tuple[Picture, ...], stride: float) -> Opened:
    height, width = frames[0].target
    return Opened(name=name, clip=Clip(frames=len(frames), height=height, width=width, stride=stride), frames=frames)


def _check_sides(name: str, sides: set[tuple[int, int]]) -> None:
    if len(sides) > 1:
        raise BadSampleError(name, f"its frames have different sizes: {sorted(sides)}")


def frame_names(key: str, video: Video) -> list[tuple[str, bytes]]:
    """Each frame's tar member and bytes."""
    return [
        (member_name(key, f"{video.name}-{number:03d}", encoded), encoded)
        for number, encoded in enumerate(video.frames)
    ]


def member_name(key: str, name: str, encoded: bytes) -> str:
    """The tar member a picture came from."""
    return f"{key}.{name}.{'png' if encoded.startswith(PNG_MAGIC) else 'jpg'}"
