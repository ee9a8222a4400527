"""A sample's segments as one row of turns: the way back from `dialogue`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from flagscale_vla.config.export_conversations import RowForm
from flagscale_vla.data.conversation import is_assistants
from flagscale_vla.data.convert.turns import Mark, Role, RowError
from flagscale_vla.data.shards import image_suffix
from flagscale_vla.records import Action, Image, RawSample, Segment, State, Text, Video

SPEAKERS = {
    RowForm.messages: {Role.system: "system", Role.user: "user", Role.assistant: "assistant"},
    RowForm.conversations: {Role.system: "system", Role.user: "human", Role.assistant: "gpt"},
}
FIELDS = {RowForm.messages: ("role", "content"), RowForm.conversations: ("from", "value")}


@dataclass(slots=True, kw_only=True)
class Spelled:
    """A row, and the files that it names."""

    row: dict[str, Any]
    files: dict[str, bytes]
    """content by path below the output folder"""


@dataclass(slots=True, kw_only=True)
class _Files:
    """Pictures and films of a row as they come up."""

    prefix: str
    images: list[str] = field(default_factory=list)
    videos: list[list[str]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)

    def keep(self, name: str, encoded: bytes) -> str:
        path = f"{self.prefix}.{name}.{image_suffix(self.prefix, name, encoded)}"
        self.contents[path] = encoded
        return path


def spell_row(sample: RawSample, meta: Mapping[str, Any], form: RowForm, folder: str) -> Spelled:
    """The row of a sample; its pictures are named below `folder`, by the sample's key.

    Raises:
        RowError: it has a state or an action, turns that do not alternate, an answer that is trained on in part, or
            a text that reads like a picture's mark.
    """
    key = sample.key.rpartition("/")[2]
    files = _Files(prefix=f"{folder}/{key}")
    turns = [spell_turn(form, role, list(turn), files) for role, turn in groupby(sample.segments, is_assistants)]
    said = FIELDS[form][1]
    if not turns or is_assistants(sample.segments[0]) or len(turns) % 2:
        raise RowError(f"turns do not alternate: there are {len(turns)}, which must begin with a user's and be even")
    if "system" in meta:
        system = str(meta["system"])
        turns[0][said] = turns[0][said].removeprefix(system + "\n")
        turns.insert(0, {FIELDS[form][0]: SPEAKERS[form][Role.system], said: system})
    row: dict[str, Any] = {"id": meta.get("id", meta.get("question_id", key)), form.value: turns}
    row |= {"images": files.images} if files.images else {}
    row |= {"videos": files.videos, "video_fps": files.rates} if files.videos else {}
    return Spelled(row=row, files=files.contents)


def spell_turn(form: RowForm, assistants: bool, turn: Sequence[Segment], files: _Files) -> dict[str, Any]:
    """One turn; `"loss": false` says that an answer is not trained on."""
    role = Role.assistant if assistants else Role.user
    speaker, said = FIELDS[form]
    entry: dict[str, Any] = {speaker: SPEAKERS[form][role], said: "".join(spell_segments(turn, files))}
    trained = {segment.supervised for segment in turn if isinstance(segment, Text)} if assistants else {True}
    if len(trained) > 1:
        raise RowError("answer trained on in part: a row has no way to say so")
    return entry if True in trained else entry | {"loss": False}


def spell_segments(turn: Sequence[Segment], files: _Files) -> Iterator[str]:
    """Texts as they are, marks for pictures and films."""
    for segment in turn:
        match segment:
            case Text(text=text):
                if any(mark in text for mark in (Mark.image.value, Mark.video.value)):
                    raise RowError("text with a mark: <image> or <video> would be taken for a picture's place")
                yield text
            case Image(name=name, encoded=encoded):
                files.images.append(files.keep(name, encoded))
                yield Mark.image.value
            case Video(name=name, frames=frames, fps=fps):
                files.videos.append([files.keep(f"{name}-{n:03d}", frame) for n, frame in enumerate(frames)])
                files.rates.append(fps)
                yield Mark.video.value
            case State() | Action():
                raise RowError("state or action: rows hold words and pictures; export_lerobot writes the robots' part")
