"""Samples in plain tar files that `webdataset` reads too: the writer, and the way back to a `RawSample`.

One sample is a run of adjacent members `KEY.<name>`, with `KEY.json` last. Its `segments` give the reading order.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.records import Action, Image, Segment, State, Text, Video

SCHEMA_VERSION = 2
READ_VERSIONS = (1, SCHEMA_VERSION)
"""Version 1 had no films; docs/shards.md tells the whole schema."""
KEY_RULE = re.compile(r"[A-Za-z0-9_\-]+")
MOST_FPS = 1000
SPLITS = ("train", "heldout")
JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where shard `number` of a split lies."""
    return folder / f"{split}-{number:06d}.tar"


def list_shards(folder: Path, split: str) -> list[Path]:
    """The finished shards of a split, in the order of their numbers."""
    return sorted(folder.glob(f"{split}-*.tar"))


def next_shard(folder: Path, split: str) -> int:
    """The number after the last finished shard of a split; 0 in an empty folder."""
    shards = list_shards(folder, split)
    return int(shards[-1].stem.rsplit("-", 1)[1]) + 1 if shards else 0


class ShardWriter:
    """Writes samples of one split into numbered shards, each of which appears whole or not at all.

    A shard is written as `NAME.tar.tmp` and renamed when it is full or the writer closes. An error inside the `with`
    block drops the unfinished shard. Two writers need different `first` numbers and a `stride` that keeps them apart.

    Args:
        folder: created where it is missing.
        split: `train` or `heldout`.
        max_bytes: a new shard begins once this one is at least so large.
        first: number of the first shard; see `next_shard`.
        stride: distance between the numbers of two shards.

    Raises:
        ValueError: a shard of that number exists already.
    """

    def __init__(self, folder: Path, split: str, max_bytes: int, *, first: int = 0, stride: int = 1) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
        self.folder, self.split, self.max_bytes, self.stride = folder, split, max_bytes, stride
        self.num_samples = 0
        self._number = first
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()

    def write(self, key: str, segments: Sequence[Segment], meta: Mapping[str, object]) -> None:
        """Append one sample.

        Args:
            key: letters, digits, `_` and `-`; unlike any other key of this writer.
            segments: in reading order; images are JPEG or PNG bytes.
            meta: what else `KEY.json` keeps, as task, episode and frame.

        Raises:
            ValueError: a bad key, a non-finite number, or a shape that does not fit; the shard is left as it was.
        """
        self._check_key(key)
        members = encode_members(key, segments, meta)
        tar = self._tar or self._open()
        for name, content in members:
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        self._keys.add(key)
        self.num_samples += 1
        if tar.offset >= self.max_bytes:
            self.close()

    def close(self) -> None:
        """Finish the shard that is being written, if any."""
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        path = shard_path(self.folder, self.split, self._number)
        os.replace(self._partial, path)
        self._number += self.stride

    @property
    def _partial(self) -> Path:
        return shard_path(self.folder, self.split, self._number).with_suffix(".tar.tmp")

    def _open(self) -> tarfile.TarFile:
        path = shard_path(self.folder, self.split, self._number)
        if path.exists():
            raise ValueError(f"{path} exists already: begin at first={next_shard(self.folder, self.split)}")
        self._tar = tarfile.open(self._partial, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close()
        return self._tar

    def _discard(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None
            self._partial.unlink()

    def _check_key(self, key: str) -> None:
        if not KEY_RULE.fullmatch(key):
            raise ValueError(f"key={key!r} must be letters, digits, '_' and '-' only, as door-open-000012-0007")
        if key in self._keys:
            raise ValueError(f"key={key!r} was written before; every sample of a split needs its own key")


def encode_members(key: str, segments: Sequence[Segment], meta: Mapping[str, object]) -> list[tuple[str, bytes]]:
    """The members of one sample as (name after the key, content), `json` last.

    Raises:
        ValueError: naming the key and the segment that cannot be stored.
    """
    members: list[tuple[str, bytes]] = []
    entries: list[dict[str, object]] = []
    robots: set[str] = set()
    counts = {"state": 0, "action": 0}
    for segment in segments:
        match segment:
            case Text():
                entries.append(_text_entry(segment))
            case Image():
                name = f"{segment.name}.{image_suffix(key, segment.name, segment.encoded)}"
                entries.append({"image": name})
                members.append((name, segment.encoded))
            case Video():
                frames = list(_video_members(key, segment))
                entries.append({"video": [name for name, _ in frames], "fps": segment.fps})
                members.extend(frames)
            case State():
                name = numbered("state", counts)
                entries.append({"state": name})
                members.append((name, encode_array(key, name, np.asarray(segment.values, np.float32), 1)))
                robots.add(segment.robot)
            case Action():
                members.extend(_action_members(key, segment, counts, entries))
                robots.add(segment.robot)
    _check_members(key, members, robots)
    header: dict[str, object] = {"schema_version": SCHEMA_VERSION, **({"robot": robots.pop()} if robots else {})}
    content = json.dumps(header | dict(meta) | header | {"segments": entries}, ensure_ascii=False)
    return [*members, ("json", content.encode())]


def _text_entry(text: Text) -> dict[str, object]:
    """Whose text it is, is said only where `supervised` does not say it."""
    entry: dict[str, object] = {"text": text.text, "supervised": text.supervised}
    return entry | {"role": "assistant"} if text.assistant and not text.supervised else entry


def _video_members(key: str, video: Video) -> Iterator[tuple[str, bytes]]:
    if not video.frames:
        raise ValueError(f"{key}: video {video.name!r} has no frames")
    if not 0 < video.fps <= MOST_FPS:
        raise ValueError(f"{key}: video {video.name!r} has fps={video.fps}; it must be above 0, at most {MOST_FPS}")
    for number, encoded in enumerate(video.frames):
        name = f"{video.name}-{number:03d}"
        yield f"{name}.{image_suffix(key, name, encoded)}", encoded


def _action_members(
    key: str, action: Action, counts: dict[str, int], entries: list[dict[str, object]]
) -> Iterator[tuple[str, bytes]]:
    number = counts["action"]
    name = numbered("action", counts)
    valid_name = "valid.npy" if number == 0 else f"valid-{number}.npy"
    values, valid = np.asarray(action.values, np.float32), np.asarray(action.valid, np.bool_)
    if valid.shape != values.shape[:1]:
        raise ValueError(f"{key}.{name}: valid has shape {valid.shape}, the action {values.shape}; steps must agree")
    entries.append({"action": name, "valid": valid_name})
    yield name, encode_array(key, name, values, 2)
    yield valid_name, encode_array(key, valid_name, valid, 1)


def _check_members(key: str, members: list[tuple[str, bytes]], robots: set[str]) -> None:
    names = [name for name, _ in members]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{key}: two images are called {twice[0]!r}; every picture of a sample needs its own name")
    if len(robots) > 1:
        raise ValueError(f"{key}: states and actions of {sorted(robots)}; a sample holds those of one robot")


def numbered(kind: str, counts: dict[str, int]) -> str:
    """`state.npy` for the first of its kind, then `state-1.npy`, ...; counts it."""
    number = counts[kind]
    counts[kind] = number + 1
    return f"{kind}.npy" if number == 0 else f"{kind}-{number}.npy"


def image_suffix(key: str, name: str, encoded: bytes) -> str:
    """`jpg` or `png`, from the first bytes.

    Raises:
        ValueError: neither of the two, or a name that cannot be a member's.
    """
    if not KEY_RULE.fullmatch(name):
        raise ValueError(f"{key}: image name {name!r} must be letters, digits, '_' and '-' only, as front")
    if encoded.startswith(JPEG_MAGIC):
        return "jpg"
    if encoded.startswith(PNG_MAGIC):
        return "png"
    raise ValueError(f"{key}: image {name!r} is neither JPEG nor PNG bytes")


def encode_array(key: str, name: str, values: NDArray[np.float32] | NDArray[np.bool_], dims: int) -> bytes:
    """An array as the bytes of a `.npy` file.

    Raises:
        ValueError: it is empty, has another number of dims, or holds NaN or infinity.
    """
    if values.ndim != dims or values.size == 0:
        raise ValueError(f"{key}.{name}: shape {values.shape} must have {dims} dim(s) and not be empty")
    if not np.isfinite(values).all():
        raise ValueError(f"{key}.{name}: holds NaN or infinity")
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
