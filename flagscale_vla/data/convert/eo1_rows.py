"""EO-1's JSON lines: plain rows, and rows that speak of frames of the mixture's robots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flagscale_vla.config.convert_eo1 import ConvertEo1Run
from flagscale_vla.data.convert.conversations import read_unit, rescaling_of
from flagscale_vla.data.convert.converter import Converted, Refusal, Skipped, Unit
from flagscale_vla.data.convert.dialogue import Dialogues, train_on_all
from flagscale_vla.data.convert.eo1_frames import FrameReader, Robot, find_frame
from flagscale_vla.data.convert.eo1_interleaved import Interleaved
from flagscale_vla.data.convert.eo1_mixture import RowsDataset
from flagscale_vla.data.convert.pictures import PictureRule
from flagscale_vla.data.convert.plan import Row, group_rows, split_of
from flagscale_vla.data.convert.rows import Entry, RowPlace, find_rows, read_rows
from flagscale_vla.data.convert.turns import TIGHT, RowError
from flagscale_vla.robots.embodiments import Embodiment


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What the plan needs to know of a row."""

    place: RowPlace
    fits: bool
    """whether it can be read and is not too long: only such rows are sampled"""
    frames: tuple[str, ...]
    """its `lerobot`, where it has one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eo1RowsConverter:
    """Reads one entry of `mm_datasets`; a unit's payload is read by `read_unit`."""

    run: ConvertEo1Run
    dataset: RowsDataset
    robots: Mapping[str, Robot | None]
    """by `repo_id`; None for one that two datasets have"""

    def embodiments(self) -> Mapping[str, Embodiment]:
        """The robots that rows name."""
        named = {text.partition(" ")[0] for row in self._scan() for text in row.frames}
        robots = [robot for repo_id, robot in self.robots.items() if repo_id in named and robot is not None]
        return {robot.selection.embodiment.name: robot.selection.embodiment for robot in robots}

    def units(self) -> Sequence[Unit]:
        """The rows that are sampled, and, to be refused, those that cannot be."""
        rows = self._scan()
        fit = [row for row in rows if row.fits]
        chosen = [fit[index] for index in self.dataset.sampling.choose(len(fit), self.run.seed)]
        taken = sorted([*chosen, *(row for row in rows if not row.fits)], key=lambda row: row.place.number)
        return group_rows((self._plan(row) for row in taken), self.run)

    def _scan(self) -> tuple[Scanned, ...]:
        path = self.dataset.path
        state = path.stat() if path.is_file() else None
        return scan(path, (state.st_mtime_ns, state.st_size) if state else (), self.run.max_seq_length)

    def _plan(self, row: Scanned) -> Row:
        payload = (0, row.place.number, row.place.start)
        return Row(name=self._split_name(row), samples=1, payload=payload)

    def _split_name(self, row: Scanned) -> str:
        """What decides about a row's split: the episodes it shows, as for their own frames, or else the row.

        A row with a frame of an episode that is held out is held out too.
        """
        try:
            places = [find_frame(self.robots, text) for text in row.frames]
        except RowError:
            places = []
        names = [f"{place.robot.name} {place.episode}" for place in places]
        held = [name for name in names if split_of(name, self.run.heldout_share) == "heldout"]
        return [*held, *names, f"{self.dataset.name}/{self.dataset.path.name}:{row.place.number}"][0]

    def samples(self, unit: Unit) -> Iterator[Converted | Refusal | Skipped]:
        """One sample or refusal per row, those about one episode after one another: its files are then open."""
        run, rule = self.run, PictureRule.of(self.run)
        rescaling = rescaling_of(run.coordinates)
        reader = FrameReader(run.horizon)
        interleaved = Interleaved(robots=self.robots, reader=reader, pictures=rule, rescaling=rescaling)
        dialogues = Dialogues(
            base=self.dataset.vision,
            pictures=rule,
            film=run.film,
            rescaling=rescaling,
            system=run.system,
            marks=TIGHT,
            mask=train_on_all,
        )
        rows = read_unit(unit, [str(self.dataset.path)], self.dataset.name)
        for _, key, entry in sorted(rows, key=lambda row: (self._first_frame(row[2]), row[2].number)):
            yield self._convert(entry, key, interleaved, dialogues)

    def _first_frame(self, entry: Entry) -> tuple[str, int, int]:
        """What a row shows first; plain rows come before all others."""
        frames = frames_of(entry)
        try:
            place = find_frame(self.robots, frames[0]) if frames else None
        except RowError:
            place = None
        return (place.robot.name, place.episode, place.frame) if place else ("", 0, 0)

    def _convert(
        self, entry: Entry, key: str, interleaved: Interleaved, dialogues: Dialogues
    ) -> Converted | Refusal | Skipped:
        content = entry.content
        if content is None:
            return Refusal(place=entry.place, reason=entry.reason)
        if not is_short(content, self.run.max_seq_length):
            length = content["seq_length"]
            return Refusal(place=entry.place, reason=f"too long: seq_length={length} of {self.run.max_seq_length}")
        try:
            segments, meta = (interleaved if "lerobot" in content else dialogues).read(content)
        except ValueError as error:
            return Refusal(place=entry.place, reason=str(error))
        kept = meta | {"source": self.dataset.name, "row": Path(entry.place).name}
        return Converted(key=key, segments=segments, meta=kept)


@lru_cache(maxsize=1)
def scan(path: Path, state: tuple[int, ...], most: int) -> tuple[Scanned, ...]:
    """All rows of a file; the last file's are remembered while its `state` stays as it is.

    Raises:
        ValueError: it is missing or of another kind than `.json` and `.jsonl`.
    """
    places = find_rows(path)
    return tuple(scan_row(place, entry, most) for place, entry in zip(places, read_rows(path, places), strict=True))


def scan_row(place: RowPlace, entry: Entry, most: int) -> Scanned:
    """What the plan needs to know of a row."""
    fits = entry.content is not None and is_short(entry.content, most)
    return Scanned(place=place, fits=fits, frames=frames_of(entry))


def frames_of(entry: Entry) -> tuple[str, ...]:
    """What a row lists as `lerobot`, as far as it is text."""
    listed = (entry.content or {}).get("lerobot")
    return tuple(text for text in listed if isinstance(text, str)) if isinstance(listed, list) else ()


def is_short(content: Mapping[str, object], most: int) -> bool:
    """Whether a row says no larger `seq_length` than `most`, if that is above 0."""
    length = content.get("seq_length", 0)
    return not most or not isinstance(length, int | float) or length <= most
