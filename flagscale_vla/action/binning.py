"""One bin for each dim of each step, as RT-2 (arXiv 2307.15818) and OpenVLA (arXiv 2406.09246) write actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flagscale_vla.action.ranges import RangeGrammar
from flagscale_vla.action.stored import Stored, write_stored
from flagscale_vla.action.tokenizer import Codes, CodesError, Floats
from flagscale_vla.action.uniform import from_bins, to_bins
from flagscale_vla.action.units import Units


class Binning:
    """An `ActionTokenizer` of equal bins between the 1st and the 99th percentile; a code is the bin, step by step.

    Args:
        bins: for each dim; 256 in both papers.
        units: the robots.
    """

    kind = "binning"

    def __init__(self, *, bins: int, units: Units) -> None:
        if bins < 2:
            raise ValueError(f"bins={bins}: must be at least 2, as 256")
        self.num_codes, self.units = bins, units
        self.embodiments, self.statistics = units.embodiments, units.statistics

    def encode(self, robot: str, values: Floats, start: Floats | None = None) -> list[Codes]:
        """Strings of codes of chunks: see `ActionTokenizer`."""
        shares = (self.units.normalize(robot, values).astype(np.float64) + 1) / 2
        return list(to_bins(shares, self.num_codes).reshape(len(values), shares.shape[1] * shares.shape[2]))

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int, start: Floats | None = None) -> Floats:
        """Chunks of strings of codes: see `ActionTokenizer`."""
        rows = self.grammar(robot, horizon).stack(codes)
        shares = from_bins(rows, self.num_codes).reshape(len(rows), horizon, self.units.dims(robot))
        return self.units.unnormalize(robot, shares * 2 - 1)

    def grammar(self, robot: str, horizon: int) -> RangeGrammar:
        """What `decode` takes: see `ActionTokenizer`."""
        if horizon < 1:
            raise CodesError(f"horizon={horizon}: must be at least 1")
        return RangeGrammar.equal(self.units.dims(robot) * horizon, self.num_codes)

    def save(self, folder: Path) -> None:
        """Write what `load_action_tokenizer` reads."""
        write_stored(folder, Stored(kind=self.kind, config={"bins": self.num_codes}, units=self.units, files={}))

    @staticmethod
    def from_stored(stored: Stored) -> Binning:
        """What `save` wrote."""
        return Binning(bins=stored.config["bins"], units=stored.units)
