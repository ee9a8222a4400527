"""From the bytes of a tar back to a `RawSample`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.place import Place
from flagscale_vla.data.shards import MOST_FPS, READ_VERSIONS
from flagscale_vla.data.store import Store
from flagscale_vla.data.tar import LAST_MEMBER, BrokenTarError, Buffer, Group, group_members, walk_tar
from flagscale_vla.records import Action, Image, RawSample, Segment, State, Text, Video

NPY_LENGTH = slice(8, 10)
"""Where a `.npy` file of version 1.0 says how long its header is (numpy.lib.format)."""
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][biuf]\d)', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
STRUCTURE = ("schema_version", "segments")


def read_sample(store: Store, place: Place) -> RawSample:
    """One sample; no other bytes of its shard are read.

    Raises:
        BadSampleError: those bytes cannot be had, or hold no whole sample.
    """
    member = f"{place.shard}/byte {place.start}"
    try:
        content = store.read(place.shard, place.start, place.size)
        groups = list(group_members(walk_tar(content, whole=False)))
    except (OSError, BrokenTarError) as error:
        raise BadSampleError(member, f"cannot be read: {error}") from error
    if len(groups) != 1:
        raise BadSampleError(member, f"{len(groups)} samples lie where the index has one")
    return parse_sample(place.shard, groups[0], content)


def parse_sample(shard: str, group: Group, buffer: Buffer) -> RawSample:
    """A sample from its members inside `buffer`.

    Raises:
        BadSampleError: a member is missing or is not what the sample's JSON says it is.
    """
    return _Parser(f"{shard}/{group.key}", group, buffer).parse()


def parse_meta(shard: str, group: Group, buffer: Buffer) -> dict[str, Any]:
    """What a sample's JSON keeps besides its segments: task, episode, frame and so on.

    Raises:
        BadSampleError: it is missing or no JSON of this schema.
    """
    header = _Parser(f"{shard}/{group.key}", group, buffer).header()
    return {name: value for name, value in header.items() if name not in STRUCTURE}


def load_array(content: bytes) -> NDArray[Any]:
    """The array in the bytes of a `.npy` file, as `numpy.load(allow_pickle=False)` reads it but read-only.

    Raises:
        ValueError: it is no such file, holds objects, or its data are cut short.
    """
    start = NPY_LENGTH.stop + int.from_bytes(content[NPY_LENGTH], "little")
    shape, by_columns, dtype = read_npy_header(content[:start])
    values = np.frombuffer(content, dtype, offset=start)
    return values.reshape(shape, order="F" if by_columns else "C")


@lru_cache(maxsize=256)
def read_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype. A run sees few different headers.

    Numpy's own reader evaluates the header as Python, which on damaged bytes ends in errors of any kind.

    Raises:
        ValueError: it is no header of version 1.0 as `numpy.save` writes it, of plain numbers or bools.
    """
    found = NPY_HEADER.fullmatch(header)
    if found is None:
        raise ValueError("it has no header of version 1.0 for plain numbers")
    kind, by_columns, shape = found.groups()
    sides = tuple(int(side) for side in shape.split(b",") if side.strip())
    return sides, by_columns == b"True", np.dtype(kind.decode())


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded; JSON's escapes can spell strings that cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_film(names: Sequence[Any], fps: float) -> bool:
    """Whether these can be the members and the frames per second of a film."""
    pictures = all(isinstance(name, str) and name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    return bool(names) and pictures and not isinstance(fps, bool) and 0 < fps <= MOST_FPS


class _Parser:
    """Turns one group of members into segments."""

    def __init__(self, key: str, group: Group, buffer: Buffer) -> None:
        self.key, self.group, self.buffer = key, group, buffer

    def parse(self) -> RawSample:
        header = self.header()
        entries = header.get("segments")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._bad(LAST_MEMBER, "has no list of `segments`")
        return RawSample(key=self.key, segments=tuple(self._segment(entry, header) for entry in entries))

    def header(self) -> dict[str, Any]:
        try:
            header = json.loads(self._content(LAST_MEMBER))
        except BadSampleError:
            raise
        except (ValueError, RecursionError) as error:
            raise self._bad(LAST_MEMBER, f"is not JSON ({error})") from error
        if not isinstance(header, dict) or header.get("schema_version") not in READ_VERSIONS:
            known = " or ".join(map(str, READ_VERSIONS))
            raise self._bad(LAST_MEMBER, f"must be an object with schema_version {known}")
        return header

    def _segment(self, entry: Mapping[str, Any], header: Mapping[str, Any]) -> Segment:
        match entry:
            case {"text": str(text), "supervised": bool(supervised)}:
                if not is_unicode(text):
                    raise self._bad(LAST_MEMBER, "has a text with half a surrogate pair, which is no Unicode")
                return Text(text=text, supervised=supervised, assistant=self._is_passed(entry))
            case {"image": str(name)} if name.lower().endswith(IMAGE_SUFFIXES):
                return Image(name=name.rpartition(".")[0], encoded=self._content(name))
            case {"video": [*names], "fps": int(fps) | float(fps)} if is_film(names, fps):
                frames = tuple(self._content(name) for name in names)
                return Video(name=names[0].rpartition("-")[0], frames=frames, fps=float(fps))
            case {"state": str(name)}:
                return State(values=self._floats(name, 1), robot=self._robot(header))
            case {"action": str(name), "valid": str(valid_name)}:
                values = self._floats(name, 2)
                valid = self._array(valid_name)
                if valid.dtype != np.bool_ or valid.shape != values.shape[:1]:
                    raise self._bad(valid_name, f"is {valid.dtype}{list(valid.shape)}, not bool[{len(values)}]")
                return Action(values=values, valid=valid, robot=self._robot(header))
        raise self._bad(LAST_MEMBER, f"has a segment that is no text, image, video, state or action: {dict(entry)}")

    def _is_passed(self, entry: Mapping[str, Any]) -> bool:
        """Whether a text is the assistant's and yet not trained on."""
        role = entry.get("role")
        if role is not None and (role != "assistant" or entry["supervised"]):
            raise self._bad(LAST_MEMBER, f"has a text of role {role!r}; only an unsupervised one has a role: assistant")
        return role is not None

    def _robot(self, header: Mapping[str, Any]) -> str:
        robot = header.get("robot")
        if not isinstance(robot, str):
            raise self._bad(LAST_MEMBER, "names no `robot`, which a sample with a state or an action needs")
        return robot

    def _floats(self, name: str, dims: int) -> NDArray[np.float32]:
        values = self._array(name)
        if values.dtype.kind != "f" or values.ndim != dims or values.size == 0:
            raise self._bad(name, f"is {values.dtype}{list(values.shape)}, not numbers with {dims} dim(s)")
        return values.astype(np.float32, copy=False)

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return load_array(self._content(name))
        except BadSampleError:
            raise
        except ValueError as error:
            raise self._bad(name, f"is not an .npy array ({error})") from error

    def _content(self, name: str) -> bytes:
        member = self.group.members.get(name)
        if member is None:
            raise self._bad(name, "is missing")
        return self.buffer[member.start : member.start + member.size]

    def _bad(self, name: str, reason: str) -> BadSampleError:
        return BadSampleError(f"{self.key}.{name}", reason)
