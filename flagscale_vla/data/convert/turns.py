"""Who says what in a row, and where pictures, films, states and actions stand in it.

Three spellings are read: `conversations` of `from` and `value` (LLaVA, EO-1), `messages` of `role` and `content`
(ShareGPT as LLaMA-Factory reads it, Embodied-Reasoner), and `question` with `answer`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class RowError(ValueError):
    """A row that cannot be converted: what kind of fault, a colon, and the particulars."""


class Role(Enum):
    """Who speaks."""

    system = "system"
    user = "user"
    assistant = "assistant"


class Mark(Enum):
    """What stands in a text for something that is no text."""

    image = "<image>"
    video = "<video>"
    state = "<state>"
    action = "<action>"
    vla = "<vla>"


ROLES = {
    "system": Role.system,
    "human": Role.user,
    "user": Role.user,
    "gpt": Role.assistant,
    "assistant": Role.assistant,
}
MARKS = "|".join(mark.value for mark in Mark)
TIGHT = re.compile(rf"\s*({MARKS})\n?")
"""EO-1's reading of a mark (multim_dataset.py, replace_image_tokens): white space before it and one line's end behind
it go with it."""
LOOSE = re.compile(f"({Mark.image.value}|{Mark.video.value})")
"""LLaMA-Factory's: the mark alone, and pictures and films only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one side says at a time."""

    role: Role
    text: str
    loss: bool | None
    """whether the row itself says that an assistant's turn is trained on; None where it does not"""


def read_turns(content: Mapping[str, Any]) -> list[Turn]:
    """The turns of a row, the system's first where there is one, then user and assistant in turn.

    Raises:
        RowError: another spelling, an unknown speaker, a text that is none, or turns that do not alternate.
    """
    turns = spell_turns(content)
    body = turns[1:] if turns and turns[0].role is Role.system else turns
    for number, turn in enumerate(body):
        wanted = Role.assistant if number % 2 else Role.user
        if turn.role is not wanted:
            raise RowError(f"turns do not alternate: turn {number + 1} after the system's is the {turn.role.value}'s")
    if len(body) < 2 or len(body) % 2:
        raise RowError(f"turns do not end with an answer: there are {len(body)}, which must be an even number above 0")
    return turns


def spell_turns(content: Mapping[str, Any]) -> list[Turn]:
    """The turns of a row in whichever spelling, in no checked order."""
    match content:
        case {"conversations": [*entries]}:
            return [read_turn(entry, "from", "value") for entry in entries]
        case {"messages": [*entries]}:
            return [read_turn(entry, "role", "content") for entry in entries]
        case {"question": str(question), "answer": str(answer)}:
            return [
                Turn(role=Role.user, text=question, loss=None),
                Turn(role=Role.assistant, text=answer, loss=None),
            ]
    raise RowError(
        "no conversation: there is no list `conversations` or `messages`, and no `question` with an `answer`"
    )


def read_turn(entry: object, speaker: str, said: str) -> Turn:
    """One turn from its object.

    Raises:
        RowError: a field is missing or of another kind, or the speaker is unknown.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get(said), str):
        raise RowError(f"bad turn: it must be an object with the texts `{speaker}` and `{said}`, not {entry!r:.80}")
    role = ROLES.get(str(entry.get(speaker)))
    if role is None:
        raise RowError(f"unknown speaker: {entry.get(speaker)!r} is none of {', '.join(ROLES)}")
    loss = entry.get("loss")
    if loss is not None and not isinstance(loss, bool):
        raise RowError(f"bad turn: its loss={loss!r} must be true or false")
    check_unicode(entry[said])
    return Turn(role=role, text=entry[said], loss=loss)


def check_unicode(text: str) -> None:
    """Refuse a text that cannot be written down; JSON's escapes can spell such.

    Raises:
        RowError: it holds half a surrogate pair.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RowError("bad text: it holds half a surrogate pair, which is no Unicode")


def split_marks(text: str, pattern: re.Pattern[str]) -> list[str | Mark]:
    """A text cut at its marks, in order, without empty pieces; `pattern` is `TIGHT` or `LOOSE`."""
    # Every second piece is what the pattern's group caught.
    pieces = pattern.split(text)
    cut = [Mark(piece) if number % 2 else piece for number, piece in enumerate(pieces)]
    return [piece for piece in cut if piece != ""]


def lead_with(turns: Sequence[Turn], count: int, mark: Mark) -> list[Turn]:
    """The turns of a `question`, with `count` marks before it where it has none of its own."""
    first = next(number for number, turn in enumerate(turns) if turn.role is Role.user)
    if any(mark.value in turn.text for turn in turns):
        return list(turns)
    marked = replace(turns[first], text=mark.value * count + turns[first].text)
    return [*turns[:first], marked, *turns[first + 1 :]]


def listed(content: Mapping[str, Any], *names: str) -> list[Any]:
    """What a row has under the first of these keys that it has: one thing or a list; empty where there is no key.

    Raises:
        RowError: two of the keys are there.
    """
    given = [name for name in names if content.get(name) not in (None, [], "")]
    if len(given) > 1:
        raise RowError(f"two lists of files: `{given[0]}` and `{given[1]}`")
    if not given:
        return []
    value = content[given[0]]
    return value if isinstance(value, list) else [value]


def check_path(path: object) -> str:
    """A path in a row.

    Raises:
        RowError: it is none.
    """
    if not isinstance(path, str) or not path:
        raise RowError(f"bad list of files: {path!r:.80} is no path")
    return path


def check_count(kind: str, marks: int, given: int) -> None:
    """Refuse a row whose marks and files do not pair.

    Raises:
        RowError: naming both numbers.
    """
    if marks != given:
        raise RowError(f"{kind} do not pair: the texts have {marks} marks, the row lists {given}")
