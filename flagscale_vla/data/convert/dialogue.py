"""A row of turns with its pictures and films becomes the segments of a sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flagscale_vla.config.convert_conversations import FilmConfig
from flagscale_vla.config.convert_rows import SystemTurn
from flagscale_vla.data.convert.coordinates import Rescaling, Size, has_coordinates
from flagscale_vla.data.convert.films import read_film
from flagscale_vla.data.convert.pictures import PictureRule, check_whole, fit_sides, read_size
from flagscale_vla.data.convert.turns import (
    Mark,
    Role,
    RowError,
    Turn,
    check_count,
    check_path,
    lead_with,
    listed,
    read_turns,
    split_marks,
)
from flagscale_vla.records import Action, Image, Segment, Text, Video

Mask = Callable[[Sequence[Turn]], list[list[Text]]]
"""From a row's turns, without the system's, to the text of each answer, in pieces that are trained on or not."""
Film = tuple[object, object]
"""What a row names: a path or a list of frames' paths, and their rate."""


def train_on_all(turns: Sequence[Turn]) -> list[list[Text]]:
    """Every answer is trained on, but those of which the row itself says `"loss": false`."""
    return [[answer_text(turn.text, turn.loss is not False)] for turn in turns if turn.role is Role.assistant]


def answer_text(text: str, supervised: bool) -> Text:
    """The assistant's text."""
    return Text(text=text, supervised=supervised, assistant=not supervised)


def check_trained(segments: Sequence[Segment]) -> None:
    """Refuse a sample without an answer or an action that is trained on.

    Raises:
        RowError: there is none.
    """
    if not any(isinstance(part, Action) or (isinstance(part, Text) and part.supervised) for part in segments):
        raise RowError("nothing to train on: no answer is supervised")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A picture or film as it is stored."""

    segment: Image | Video
    given: Size
    """width and height of the source's"""
    stored: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogues:
    """How the rows of a source are read."""

    base: Path
    """folder that pictures and films are named from"""
    pictures: PictureRule
    film: FilmConfig | None
    """None refuses films"""
    rescaling: Rescaling | None
    """of boxes and points; None leaves texts as they are"""
    system: SystemTurn
    marks: re.Pattern[str]
    """`TIGHT` or `LOOSE`"""
    mask: Mask

    def read(self, content: Mapping[str, Any]) -> tuple[tuple[Segment, ...], dict[str, object]]:
        """The segments of a row, and what its sample's JSON keeps of it.

        Raises:
            RowError: the row cannot be converted.
        """
        turns, meta = self._settle_system(read_turns(content))
        images, videos = listed(content, "image", "images"), listed(content, "video", "videos")
        if "question" in content:
            turns = lead_with(turns, len(images), Mark.image) if images else lead_with(turns, len(videos), Mark.video)
        self._check_marks(turns, len(images), len(videos))
        seen = self._look(turns, images, zip(videos, film_rates(content, len(videos)), strict=True))
        turns = rescale_turns(turns, seen, self.rescaling)
        segments = tuple(self._lay_out(turns, iter(seen)))
        check_trained(segments)
        return segments, meta | {name: content[name] for name in ("id", "question_id") if name in content}

    def _settle_system(self, turns: list[Turn]) -> tuple[list[Turn], dict[str, object]]:
        """The turns without the system's, and what is kept of that."""
        if turns[0].role is not Role.system:
            return turns, {}
        if self.system is SystemTurn.refuse:
            raise RowError("system's turn: system=refuse lets none pass")
        first, *rest = turns[1:]
        if self.system is SystemTurn.prepend:
            first = replace(first, text=turns[0].text + "\n" + first.text)
        return [first, *rest], {"system": turns[0].text}

    def _check_marks(self, turns: Sequence[Turn], images: int, videos: int) -> None:
        counts = dict.fromkeys(Mark, 0)
        for turn in turns:
            for piece in split_marks(turn.text, self.marks):
                if isinstance(piece, Mark):
                    counts[piece] += 1
                    if turn.role is Role.assistant and piece in (Mark.image, Mark.video):
                        raise RowError(f"mark in an answer: {piece.value}")
        for mark in (Mark.state, Mark.action, Mark.vla):
            if counts[mark]:
                raise RowError(f"mark of a robot: {mark.value} in a row that names no robot's data")
        check_count("pictures", counts[Mark.image], images)
        check_count("films", counts[Mark.video], videos)

    def _look(self, turns: Sequence[Turn], images: Sequence[object], videos: Iterable[Film]) -> list[Seen]:
        """Pictures and films in the order of their marks."""
        image_places, video_places = enumerate(images), enumerate(videos)
        seen = []
        for turn in turns:
            for piece in split_marks(turn.text, self.marks):
                if piece is Mark.image:
                    number, path = next(image_places)
                    seen.append(self._see_image(f"image-{number}", check_path(path)))
                elif piece is Mark.video:
                    number, film = next(video_places)
                    seen.append(self._see_film(f"video-{number}", *film))
        return seen

    def _see_image(self, name: str, path: str) -> Seen:
        encoded = read_bytes(place_of(self.base, path, "picture"))
        try:
            width, height = read_size(encoded)
            stored = self.pictures.recode(encoded)
            if stored is encoded:
                check_whole(encoded)
        except ValueError as error:
            raise RowError(f"{error} ({path})") from error
        sides = fit_sides(height, width, self.pictures.longest)
        return Seen(segment=Image(name=name, encoded=stored), given=(width, height), stored=(sides[1], sides[0]))

    def _see_film(self, name: str, source: object, rate: object) -> Seen:
        if self.film is None:
            raise RowError(f"film in a row: {source!r:.80}")
        if isinstance(source, list):
            return self._see_frames(name, source, rate)
        path = place_of(self.base, check_path(source), "film")
        film, size = read_film(path, name, self.film, self.pictures)
        height, width = fit_sides(size[1], size[0], self.pictures.longest)
        return Seen(segment=film, given=size, stored=(width, height))

    def _see_frames(self, name: str, paths: Sequence[object], rate: object) -> Seen:
        """A film whose frames are listed, all of which are taken."""
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise RowError(f"film without a rate: `video_fps` must hold the frames per second, not {rate!r:.80}")
        frames = [self._see_image(name, check_path(path)) for path in paths]
        sizes = {(frame.given, frame.stored) for frame in frames}
        if len(sizes) != 1:
            raise RowError(f"frames of different sizes: a film has {len(frames)} frames of {len(sizes)} sizes")
        given, stored = sizes.pop()
        encoded = tuple(frame.segment.encoded for frame in frames if isinstance(frame.segment, Image))
        return Seen(segment=Video(name=name, frames=encoded, fps=float(rate)), given=given, stored=stored)

    def _lay_out(self, turns: Sequence[Turn], seen: Iterator[Seen]) -> Iterator[Segment]:
        answers = iter(self.mask(turns))
        for turn in turns:
            if not turn.text:
                raise RowError(f"empty turn: the {turn.role.value}'s")
            if turn.role is Role.assistant:
                yield from next(answers)
                continue
            for piece in split_marks(turn.text, self.marks):
                yield Text(text=piece, supervised=False) if isinstance(piece, str) else next(seen).segment


def film_rates(content: Mapping[str, Any], count: int) -> list[object]:
    """What `video_fps` says of each film, which matters for those that are lists of frames.

    Raises:
        RowError: it has another length.
    """
    rates = listed(content, "video_fps") or [None] * count
    if len(rates) != count:
        raise RowError(f"film without a rate: `video_fps` holds {len(rates)} numbers for {count} films")
    return rates


def rescale_turns(turns: Sequence[Turn], seen: Sequence[Seen], rescaling: Rescaling | None) -> list[Turn]:
    """The turns with their boxes and points rewritten for the pictures that are stored.

    Raises:
        RowError: nobody said what coordinates count, and a picture was resized; or they lie outside it.
    """
    if not any(has_coordinates(turn.text) for turn in turns):
        return list(turns)
    if rescaling is None:
        if any(picture.given != picture.stored for picture in seen):
            raise RowError("coordinates of a resized picture: coordinates.source must say what they count")
        return list(turns)
    given, stored = one_size(seen) if rescaling.needs_size else ((1, 1), (1, 1))
    return [replace(turn, text=rescaling.rewrite(turn.text, given, stored)) for turn in turns]


def one_size(seen: Sequence[Seen]) -> tuple[Size, Size]:
    """The size that all pictures of a row have, in the source and in the shard.

    Raises:
        RowError: there is no picture, or two of different sizes, so that nobody can tell whose pixels are meant.
    """
    sizes = {(picture.given, picture.stored) for picture in seen}
    if len(sizes) != 1:
        raise RowError(f"coordinates of which picture: the row's pictures have {len(sizes)} different sizes")
    return sizes.pop()


def place_of(base: Path, path: str, kind: str) -> Path:
    """Where a file lies.

    Raises:
        RowError: on another machine.
    """
    if "://" in path:
        raise RowError(f"{kind} is not here: {path}; download it and name the file")
    return base / path


def read_bytes(path: Path) -> bytes:
    """A picture's file.

    Raises:
        RowError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RowError(f"picture is missing: {path} ({error.strerror})") from error
