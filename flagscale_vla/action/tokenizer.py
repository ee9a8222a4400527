"""What an action tokenizer is: chunks of actions to short strings of codes and back, and which strings are legal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import RobotStatistics

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]


class CodesError(ValueError):
    """A string of codes that stands for no chunk. Nothing is decoded in its place."""


class ChunkError(ValueError):
    """A chunk that cannot be encoded: its robot is unknown, it is empty, of another width, or not finite; or it
    lacks the state that it is to begin at."""


class Grammar(Protocol):
    """Which strings of codes stand for a chunk of one robot and horizon."""

    @property
    def longest(self) -> int:
        """No complete string has more codes than this."""

    def legal(self, prefix: Sequence[int]) -> Codes:
        """Codes that may follow, i64[L] ascending; empty exactly when the string is complete.

        Raises:
            CodesError: the prefix itself is not the beginning of any complete string.
        """


class ActionTokenizer(Protocol):
    """Maps chunks in a robot's own units to strings of codes in [0, num_codes) and back."""

    @property
    def kind(self) -> str:
        """`omnisat`, `fast`, `beast` or `binning`."""

    @property
    def num_codes(self) -> int:
        """Size of the tokenizer's own alphabet."""

    @property
    def embodiments(self) -> Mapping[str, Embodiment]:
        """The robots that it was fitted on, by name."""

    @property
    def statistics(self) -> Mapping[str, RobotStatistics]:
        """What scales each of them."""

    def encode(self, robot: str, values: Floats, start: Floats | None = None) -> list[Codes]:
        """Of chunks f32[N, H, A0] in the robot's own units, N strings of codes i64[K].

        Args:
            robot: its name.
            values: the chunks.
            start: the robot's state f32[N, S0] where each begins. Only a codec with `pin_start` reads it.

        Raises:
            ChunkError: see there.
        """

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int, start: Floats | None = None) -> Floats:
        """Of N strings of codes, chunks f32[N, H, A0] in the robot's own units: finite, and within the range seen in
        training. `start` as in `encode`: the state that the chunks are to go on from.

        Raises:
            CodesError: a string that `grammar` refuses.
            ChunkError: the robot is unknown, or a start is missing that is needed.
        """

    def grammar(self, robot: str, horizon: int) -> Grammar:
        """What `decode` takes.

        Raises:
            ChunkError: the robot is unknown.
        """

    def save(self, folder: Path) -> None:
        """Write what `action.store.load_action_tokenizer` reads."""


def check_row(codes: Codes) -> None:
    """Refuse what is no string of codes at all.

    Raises:
        CodesError: it is not an array of whole numbers in a row.
    """
    if codes.ndim != 1 or not np.issubdtype(codes.dtype, np.integer):
        raise CodesError(f"codes must be whole numbers in a row, i64[K], not {codes.dtype}{list(codes.shape)}")
