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
from flagscale_vla.data import decoders, images
from flagscale_vla.data.augment import Kind, allowed, apply, draw
from flagscale_vla.data.draws import Draw, stream
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.headers import picture_sides
from flagscale_vla.data.images import Pixels
from flagscale_vla.data.shards import PNG_MAGIC
from flagscale_vla.records import Image, Segment, Video

Grid = tuple[int, int, int]
"""Patches along (time, height, width)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A picture, or the frames of a film, each u8[14 rows, 14 columns, 3]."""

    name: str
    """of the picture or film in its sample"""
    frames: tuple[Pixels, ...]
    stride: float
    """rotary time positions from one step of time to the next; means nothing for a picture"""

    @property
    def grid(self) -> Grid:
        """Patches along (time, height, width)."""
        height, width = self.frames[0].shape[:2]
        return time_steps(len(self.frames)), height // PATCH_PIXELS, width // PATCH_PIXELS

    @property
    def nbytes(self) -> int:
        """Of all frames."""
        return sum(frame.size for frame in self.frames)

    def moved(self, room: Pixels) -> Clip:
        """The same with its frames in `room`, u8[nbytes]: one after another, each [h, w, 3]."""
        places = room.reshape(len(self.frames), *self.frames[0].shape)
        for place, frame in zip(places, self.frames, strict=True):
            place[:] = frame
        return replace(self, frames=tuple(places))


def place_clips(clips: Iterable[Clip], room: Pixels) -> list[Clip]:
    """Clips moved into `room`, each as soon as it is there: one that is read is then still in a processor's caches."""
    placed, start = [], 0
    for clip in clips:
        placed.append(clip.moved(room[start : start + clip.nbytes]))
        start += clip.nbytes
    return placed


def first_frames(pixels: Pixels, frames: Sequence[int], grids: Sequence[Grid]) -> Iterator[Pixels]:
    """The first frame u8[h, w, 3] of each step of time, from what `place_clips` filled."""
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

    def read(self, key: str, segments: Iterable[Segment]) -> Iterator[Clip]:
        """All pictures and films of a sample, in order, each when it is asked for.

        Raises:
            BadSampleError: one of them cannot be decoded, is too large or too long, or a film's frames differ in size.
        """
        return (self._read_one(key, segment) for segment in segments if isinstance(segment, Image | Video))

    def grids(self, key: str, segments: Iterable[Segment]) -> list[Grid]:
        """Grids of all pictures and films of a sample; only headers are read.

        Raises:
            BadSampleError: a header does not fit.
        """
        return [self._grid(key, segment) for segment in segments if isinstance(segment, Image | Video)]

    def nbytes(self, key: str, segments: Iterable[Segment]) -> int:
        """Of all frames of a sample's pictures and films on their grids; only headers are read.

        Raises:
            BadSampleError: as `grids`.
        """
        seen = [segment for segment in segments if isinstance(segment, Image | Video)]
        frames = [len(segment.frames) if isinstance(segment, Video) else 1 for segment in seen]
        sides = zip(frames, self.grids(key, seen), strict=True)
        return sum(3 * count * rows * columns * PATCH_PIXELS**2 for count, (_, rows, columns) in sides)

    def fit(self, name: str, pixels: Pixels) -> Clip:
        """What a camera sees, u8[h, w, 3]."""
        return Clip(name=name, frames=(decoders.fit(name, pixels, self.config, self.config.decoder),), stride=1.0)

    def change(
        self, key: str, segments: Sequence[Segment], clips: Iterable[Clip], seed: int, epoch: int
    ) -> Iterator[Clip]:
        """The clips of a sample as training changes them; see `data.augment`."""
        kinds = allowed(segments)
        return (self._change_one(key, clip, kinds, seed, epoch) for clip in clips) if kinds else iter(clips)

    def _change_one(self, key: str, clip: Clip, kinds: frozenset[Kind], seed: int, epoch: int) -> Clip:
        generator = stream(seed, epoch, f"{key}/{clip.name}", Draw.augment)
        changes = draw(self.config.augment, kinds, generator)
        return replace(clip, frames=tuple(apply(frame, changes) for frame in clip.frames))

    def _read_one(self, key: str, segment: Image | Video) -> Clip:
        decoder = self.config.decoder
        if isinstance(segment, Image):
            name = member_name(key, segment.name, segment.encoded)
            pixels = decoders.load(name, segment.encoded, self.config, decoder)
            return Clip(name=segment.name, frames=(pixels,), stride=1.0)
        limits = self.config.video.limits(len(segment.frames))
        frames = tuple(decoders.load(name, encoded, limits, decoder) for name, encoded in frame_names(key, segment))
        _check_sides(f"{key}.{segment.name}", {(frame.shape[0], frame.shape[1]) for frame in frames})
        return Clip(name=segment.name, frames=frames, stride=self.config.video.stride(segment.fps))

    def _grid(self, key: str, segment: Image | Video) -> Grid:
        if isinstance(segment, Image):
            name = member_name(key, segment.name, segment.encoded)
            return 1, *images.image_grid(name, *picture_sides(name, segment.encoded), self.config)
        sides = [picture_sides(name, encoded) for name, encoded in frame_names(key, segment)]
        name = f"{key}.{segment.name}"
        _check_sides(name, set(sides))
        limits = self.config.video.limits(len(sides))
        return time_steps(len(sides)), *images.image_grid(name, *sides[0], limits)


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
