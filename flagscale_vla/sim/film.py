"""Films of episodes: what all cameras saw, side by side, with the instruction and how it ended."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw

from flagscale_vla.records import Observation

SMALLEST_HEIGHT = 224
"""Of a film in pixels; smaller frames are enlarged by a whole factor."""
CAPTION_HEIGHT = 32
LAST_FRAME_REPEATS = 20
"""The ending stays for a second."""
STRIP_FRAMES = 8
CODECS = ("libx264", "mpeg4")
"""The first one that this build of PyAV has is taken."""

Frame = NDArray[np.uint8]


def check_video() -> None:
    """See that videos can be written.

    Raises:
        ValueError: PyAV is not installed.
    """
    if find_spec("av") is None:
        raise ValueError("videos need the package av: pip install 'flagscale_vla[sim]', or videos=0")


class Film:
    """Gathers observations of one episode; `save` writes them as a video and as a strip of pictures."""

    def __init__(self, fps: int) -> None:
        self.fps = fps
        self._frames: list[Frame] = []
        self._instruction = ""

    def add(self, seen: Observation) -> None:
        """Keep what was seen at one control step."""
        self._instruction = seen.instruction
        self._frames.append(np.concatenate(list(seen.images.values()), axis=1))

    def save(self, path: Path, outcome: str) -> None:
        """Write `path` (an mp4 with the instruction and outcome under the picture) and a strip beside it as PNG.

        Nothing is written where nothing was seen.
        """
        if not self._frames:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        caption = f"{self._instruction}: {outcome}"
        frames = [captioned(frame, caption) for frame in self._frames]
        write_video(path, frames + frames[-1:] * LAST_FRAME_REPEATS, self.fps)
        Picture.fromarray(self._strip()).save(path.with_suffix(".png"))

    def _strip(self) -> Frame:
        count = min(STRIP_FRAMES, len(self._frames))
        chosen = np.linspace(0, len(self._frames) - 1, count).round().astype(int)
        height, width, _ = self._frames[0].shape
        # Time runs to the right, cameras lie below each other.
        cameras = range(width // height)
        rows = [[self._frames[i][:, c * height : (c + 1) * height] for i in chosen] for c in cameras]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def captioned(frame: Frame, caption: str) -> Frame:
    """The frame u8[h, w, 3], enlarged, over a line of text; both sides even, as video codecs want them."""
    factor = -(-SMALLEST_HEIGHT // frame.shape[0])
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = large.shape[0] // 2 * 2, large.shape[1] // 2 * 2
    canvas = Picture.new("RGB", (width, height + CAPTION_HEIGHT))
    canvas.paste(Picture.fromarray(large[:height, :width]))
    ImageDraw.Draw(canvas).text((6, height + 9), caption, fill=(255, 255, 255))
    return np.asarray(canvas)


def write_video(path: Path, frames: list[Frame], fps: int) -> None:
    """Write an mp4 of frames u8[h, w, 3]."""
    # Only those who want videos need it.
    import av

    codec = next(codec for codec in CODECS if codec in av.codecs_available)
    height, width, _ = frames[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
