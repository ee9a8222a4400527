"""EO-1's interleaved rows: a conversation about frames of robots, in which some answers are actions.

    {"lerobot": ["<repo_id> <frame_index> <length>", ...], "view": [["observation.images.head", ...], ...],
     "conversations": [{"from": "human", "value": "<image><state>pick up the soap<vla>"},
                       {"from": "gpt", "value": "<action>"}, ...]}

Each turn of the user's takes as many entries of `lerobot` as its `<image>` marks need. State and action are those of
the last entry that was taken (`eo/data/multim_dataset.py`, `build_interleaved_prompt`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale_vla.data.convert.dialogue import answer_text, check_trained
from flagscale_vla.data.convert.eo1_frames import FramePlace, FrameReader, Robot, find_frame
from flagscale_vla.data.convert.pictures import PictureRule
from flagscale_vla.data.convert.turns import TIGHT, Mark, Role, RowError, Turn, read_turns, split_marks
from flagscale_vla.records import Image, Segment, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One picture that a turn shows."""

    place: FramePlace
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaved:
    """How interleaved rows are read."""

    robots: Mapping[str, Robot | None]
    """by `repo_id`; None for one that two datasets have"""
    reader: FrameReader
    pictures: PictureRule

    def read(self, content: Mapping[str, Any]) -> tuple[tuple[Segment, ...], dict[str, object]]:
        """The segments of a row, and what its sample's JSON keeps of it.

        Raises:
            RowError: the row cannot be converted.
            ValueError: a file of the dataset is missing or damaged.
        """
        places = find_places(self.robots, content)
        views = read_views(content, len(places))
        turns = read_turns(content)
        if turns[0].role is Role.system:
            raise RowError("system's turn: interleaved rows have none")
        check_views(turns, views)
        segments = tuple(self._lay_out(turns, places, views))
        check_trained(segments)
        return segments, {"lerobot": content["lerobot"]}

    def _lay_out(
        self, turns: Sequence[Turn], places: Sequence[FramePlace], views: Sequence[Sequence[str]]
    ) -> Iterator[Segment]:
        taken = shown = 0
        for asked, answered in zip(turns[::2], turns[1::2], strict=True):
            seen: list[View] = []
            wanted = split_marks(asked.text, TIGHT).count(Mark.image)
            while len(seen) < wanted and taken < len(places):
                seen += [View(place=places[taken], key=key) for key in views[taken]]
                taken += 1
            if len(seen) != wanted:
                raise RowError(f"views do not pair: a turn with {wanted} <image> marks is given {len(seen)} views")
            acts = check_action(asked, answered)
            if acts and not taken:
                raise RowError("action without a frame: no entry of `lerobot` was taken before it")
            yield from self._ask(asked, seen, places[taken - 1] if acts else None, shown)
            yield from self._answer(answered, places[taken - 1] if acts else None)
            shown += wanted
        if taken < len(places):
            raise RowError(f"frames left over: {len(places) - taken} entries of `lerobot` have no <image>")

    def _ask(self, turn: Turn, seen: Sequence[View], acting: FramePlace | None, shown: int) -> Iterator[Segment]:
        views = iter(enumerate(seen, shown))
        for piece in split_marks(turn.text, TIGHT):
            if isinstance(piece, str):
                yield Text(text=piece, supervised=False)
            elif piece is Mark.image:
                number, view = next(views)
                yield self._picture(view, number)
            elif piece is Mark.state and acting is not None:
                yield self.reader.state(acting)

    def _answer(self, turn: Turn, acting: FramePlace | None) -> Iterator[Segment]:
        for piece in split_marks(turn.text, TIGHT):
            if isinstance(piece, str):
                yield answer_text(piece, turn.loss is not False)
            elif acting is not None:
                yield self.reader.action(acting)

    def _picture(self, view: View, number: int) -> Image:
        frame = self.reader.picture(view.place, view.key)
        encoded = self.pictures.recode(frame) if isinstance(frame, bytes) else self.pictures.encode(frame)
        return Image(name=f"{self.reader.camera(view.place, view.key)}-{number}", encoded=encoded)


def find_places(robots: Mapping[str, Robot | None], content: Mapping[str, Any]) -> list[FramePlace]:
    """The frames of a row.

    Raises:
        RowError: `lerobot` is no list, or an entry leads nowhere.
    """
    entries = content.get("lerobot")
    if not isinstance(entries, list) or not entries:
        raise RowError("bad frames: `lerobot` must be a list that is not empty")
    return [find_frame(robots, entry) for entry in entries]


def read_views(content: Mapping[str, Any], count: int) -> list[list[str]]:
    """The cameras of each frame.

    Raises:
        RowError: `view` is no list of lists of texts, or of another length than `lerobot`.
    """
    views = content.get("view")
    ok = isinstance(views, list) and all(isinstance(keys, list) for keys in views)
    if not ok or not all(isinstance(key, str) for keys in content["view"] for key in keys):
        raise RowError("bad views: `view` must be a list of lists of cameras")
    if len(content["view"]) != count:
        raise RowError(f"views do not pair: `lerobot` has {count} entries, `view` {len(content['view'])}")
    return list(content["view"])


def check_views(turns: Sequence[Turn], views: Sequence[Sequence[str]]) -> None:
    """Refuse a row with another number of pictures than of marks for them.

    Raises:
        RowError: naming both.
    """
    marks = [piece for turn in turns[::2] for piece in split_marks(turn.text, TIGHT)]
    given = sum(map(len, views))
    if marks.count(Mark.image) != given:
        raise RowError(f"views do not pair: the texts have {marks.count(Mark.image)} <image> marks, `view` {given}")
    if Mark.video in marks:
        raise RowError("film in a row: interleaved rows have pictures only")


def check_action(asked: Turn, answered: Turn) -> bool:
    """Whether an answer is an action, whose marks must then all be in their places.

    Raises:
        RowError: `<vla>`, `<state>` and `<action>` do not go together.
    """
    question, answer = split_marks(asked.text, TIGHT), split_marks(answered.text, TIGHT)
    if any(mark in answer for mark in (Mark.image, Mark.video, Mark.state, Mark.vla)):
        raise RowError(f"mark in an answer: {answered.text!r:.80}")
    if not answer or not question:
        raise RowError("empty turn: a question or an answer says and shows nothing")
    counts = question.count(Mark.vla), answer.count(Mark.action), question.count(Mark.state)
    if counts == (0, 0, 0):
        return False
    if counts[:2] != (1, 1) or question[-1] is not Mark.vla or answer[-1] is not Mark.action:
        raise RowError("action does not pair: one <vla> must end the question and one <action> the answer")
    if counts[2] != 1:
        raise RowError(f"action without a state: a question that ends in <vla> has {counts[2]} <state> marks, not 1")
    return True
