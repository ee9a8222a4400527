"""Job `convert_conversations`: questions and answers about pictures, films or nothing become shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flagscale_vla.config.convert_conversations import ConvertConversationsRun, Coordinates, CoordinatesConfig, Marks
from flagscale_vla.config.convert_rows import RowsRun
from flagscale_vla.data.convert.converter import Converted, Refusal, Skipped, Unit
from flagscale_vla.data.convert.coordinates import Rescaling
from flagscale_vla.data.convert.dialogue import Dialogues, train_on_all
from flagscale_vla.data.convert.job import convert
from flagscale_vla.data.convert.pictures import PictureRule
from flagscale_vla.data.convert.plan import Row, group_rows
from flagscale_vla.data.convert.rows import Entry, RowPlace, find_rows, parse_sampling, read_rows
from flagscale_vla.data.convert.turns import LOOSE, TIGHT, RowError
from flagscale_vla.robots.embodiments import Embodiment

logger = logging.getLogger(__name__)


def run(run: ConvertConversationsRun) -> None:
    """Convert all files of rows that the settings name.

    Raises:
        ConfigError: a sampling strategy that is none.
        ValueError: a file is missing or of another kind, or too many rows are refused.
    """
    dialogues = Dialogues(
        base=Path(run.base),
        pictures=PictureRule.of(run),
        film=run.film,
        rescaling=rescaling_of(run.coordinates),
        system=run.system,
        marks=TIGHT if run.marks is Marks.eo1 else LOOSE,
        mask=train_on_all,
    )
    convert(RowConverter(run, dialogues), run)


@dataclass(frozen=True, slots=True)
class RowConverter:
    """Rows of `files`, each of which becomes a sample."""

    settings: RowsRun
    dialogues: Dialogues

    def embodiments(self) -> Mapping[str, Embodiment]:
        """None: nobody acts, and decisions are words."""
        return {}

    def units(self) -> Sequence[Unit]:
        """The chosen rows of all files; a payload's entry is (file, line, byte)."""
        run = self.settings
        return group_rows(sampled_rows(run.files, run.sampling, run.name, run.seed), run)

    def samples(self, unit: Unit) -> Iterator[Converted | Refusal | Skipped]:
        """One sample or refusal per row."""
        run = self.settings
        for path, key, entry in read_unit(unit, run.files, run.name):
            dialogues = self.dialogues if run.base else replace(self.dialogues, base=path.parent)
            yield convert_row(dialogues, entry, key, run.name)


def sampled_rows(files: Sequence[str], sampling: str, name: str, seed: int) -> Iterator[Row]:
    """The rows that are taken of each file."""
    strategy = parse_sampling("sampling", sampling)
    for file, path in enumerate(map(Path, files)):
        places = find_rows(path)
        chosen = strategy.choose(len(places), seed)
        logger.info("%s: %d of %d rows are taken", path, len(chosen), len(places))
        for index in chosen:
            place = places[index]
            yield Row(name=f"{name}/{path.name}:{place.number}", samples=1, payload=(file, place.number, place.start))


def read_unit(unit: Unit, files: Sequence[str], name: str) -> Iterator[tuple[Path, str, Entry]]:
    """The rows of a unit: their file, the key of their sample, and what they hold."""
    places: tuple[tuple[int, int, int], ...] = unit.payload  # type: ignore[assignment]
    for file in sorted({place[0] for place in places}):
        path = Path(files[file])
        wanted = [RowPlace(number=number, start=start) for other, number, start in places if other == file]
        for entry in read_rows(path, wanted):
            yield path, f"{name}-{file:02d}-{entry.number:08d}", entry


def rescaling_of(coordinates: CoordinatesConfig) -> Rescaling | None:
    """How texts are rewritten; None where they are not."""
    if coordinates.source is Coordinates.unknown:
        return None
    return Rescaling(source=coordinates.source, target=coordinates.target)


def convert_row(dialogues: Dialogues, entry: Entry, key: str, source: str) -> Converted | Refusal:
    """What a row becomes."""
    if entry.content is None:
        return Refusal(place=entry.place, reason=entry.reason)
    try:
        segments, meta = dialogues.read(entry.content)
    except RowError as error:
        return Refusal(place=entry.place, reason=str(error))
    return Converted(key=key, segments=segments, meta=meta | {"source": source, "row": Path(entry.place).name})
