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

from flagscale_vla.data.convert.coordinates import Rescaling
from flagscale_vla.data.convert.dialogue import Seen, answer_text, check_trained, rescale_turns
from flagscale_vla.data.convert.eo1_frames import FramePlace, FrameReader, Robot, find_frame
from flagscale_vla.data.convert.pictures import PictureRule, fit_sides, read_size
from flagscale_vla.data.convert.turns import TIGHT, Mark, Role, RowError, Turn, read_turns, split_marks
from flagscale_vla.records import Image, Segment, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question with its answer, and what it shows."""

    shown: tuple[tuple[FramePlace, str], ...]
    """frame and camera of each picture"""
    acting: FramePlace | None
    """where state and action are taken; None where the answer is no action"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaved:
    """How interleaved rows are read."""

    robots: Mapping[str, Robot | None]
    """by `repo_id`; None for one that two datasets have"""
    reader: FrameReader
    pictures: PictureRule
    rescaling: Rescaling | None
    """of boxes and points; None leaves texts as they are"""

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
        exchanges = list(share_out(turns, places, views))
        check_robots(exchanges)
        shown = [picture for exchange in exchanges for picture in exchange.shown]
        seen = [self._see(number, *picture) for number, picture in enumerate(shown)]
        turns = rescale_turns(turns, seen, self.rescaling)
        segments = tuple(self._lay_out(turns, exchanges, iter(seen)))
        check_trained(segments)
        return segments, {"lerobot": content["lerobot"]}

    def _see(self, number: int, place: FramePlace, key: str) -> Seen:
        frame = self.reader.picture(place, key)
        encoded = self.pictures.recode(frame) if isinstance(frame, bytes) else self.pictures.encode(frame)
        width, height = read_size(frame) if isinstance(frame, bytes) else (frame.shape[1], frame.shape[0])
        stored = fit_sides(height, width, self.pictures.longest)
        image = Image(name=f"{self.reader.camera(place, key)}-{number}", encoded=encoded)
        return Seen(segment=image, given=(width, height), stored=(stored[1], stored[0]))

    def _lay_out(self, turns: Sequence[Turn], exchanges: Sequence[Exchange], seen: Iterator[Seen]) -> Iterator[Segment]:
        for asked, answered, exchange in zip(turns[::2], turns[1::2], exchanges, strict=True):
            for piece in split_marks(asked.text, TIGHT):
                if isinstance(piece, str):
                    yield Text(text=piece, supervised=False)
                elif piece is Mark.image:
                    yield next(seen).segment
                elif piece is Mark.state and exchange.acting:
                    yield self.reader.state(exchange.acting)
            for piece in split_marks(answered.text, TIGHT):
                if isinstance(piece, str):
                    yield answer_text(piece, answered.loss is not False)
                elif exchange.acting:
                    yield self.reader.action(exchange.acting)


def share_out(
    turns: Sequence[Turn], places: Sequence[FramePlace], views: Sequence[Sequence[str]]
) -> Iterator[Exchange]:
    """The frames that each question takes.

    Raises:
        RowError: marks and frames do not pair.
    """
    taken = 0
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        shown: list[tuple[FramePlace, str]] = []
        wanted = split_marks(asked.text, TIGHT).count(Mark.image)
        while len(shown) < wanted and taken < len(places):
            shown += [(places[taken], key) for key in views[taken]]
            taken += 1
        if len(shown) != wanted:
            raise RowError(f"views do not pair: a turn with {wanted} <image> marks is given {len(shown)} views")
        acts = check_action(asked, answered)
        if acts and not taken:
            raise RowError("action without a frame: no entry of `lerobot` was taken before it")
        yield Exchange(shown=tuple(shown), acting=places[taken - 1] if acts else None)
    if taken < len(places):
        raise RowError(f"frames left over: {len(places) - taken} entries of `lerobot` have no <image>")


def check_robots(exchanges: Sequence[Exchange]) -> None:
    """Refuse actions of two robots in one row; pictures may be of several.

    Raises:
        RowError: naming them.
    """
    names = sorted({exchange.acting.robot.name for exchange in exchanges if exchange.acting})
    if len(names) > 1:
        raise RowError(f"two robots act: {' and '.join(names)}; a sample holds the actions of one")


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
