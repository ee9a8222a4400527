"""A converter without files, for tests of the frame."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.data.convert.converter import Converted, Refusal, Skipped, Unit
from flagscale_vla.data.convert.plan import Row, group_rows
from flagscale_vla.records import Action, Image, Segment, State, Text
from flagscale_vla.robots.embodiments import Embodiment
from tests.samples import SAWYER, encode_picture, picture

BAD_ROW = 7
NAN_ROW = 11
SKIPPED_ROW = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Rows 0 to `rows - 1`, each a robot's frame; some are bad."""

    run: ConvertRun
    rows: int
    deadly: str = ""
    """while this file is missing, the unit with row 20 makes it and kills its process"""

    def embodiments(self) -> Mapping[str, Embodiment]:
        return {SAWYER.name: SAWYER}

    def units(self) -> Sequence[Unit]:
        return group_rows((Row(name=f"row {row}", samples=1, payload=row) for row in range(self.rows)), self.run)

    def samples(self, unit: Unit) -> Iterator[Converted | Refusal | Skipped]:
        assert isinstance(unit.payload, tuple)
        for row in unit.payload:
            if row == 20 and self.deadly and not Path(self.deadly).exists():
                Path(self.deadly).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if row == BAD_ROW:
                yield Refusal(place=f"line {row}", reason=f"is odd: {row}")
            elif row == SKIPPED_ROW:
                yield Skipped(reason="a stride", count=1)
            else:
                yield Converted(key=f"row-{row:04d}", segments=segments(row), meta={"source": "numbers", "frame": row})


def segments(row: int) -> tuple[Segment, ...]:
    """A picture, a state, words and an action; one row's state is NaN."""
    generator = np.random.default_rng(row)
    state = np.full(4, np.nan if row == NAN_ROW else row, np.float32)
    return (
        Image(name="front", encoded=encode_picture(picture(generator, 48, 64))),
        State(values=state, robot=SAWYER.name),
        Text(text=f"row {row}", supervised=False),
        Action(values=np.full((3, 4), row, np.float32), valid=np.ones(3, np.bool_), robot=SAWYER.name),
    )
