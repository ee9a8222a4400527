"""An action tokenizer as a robot or a simulator uses it: a chunk goes in, what is left of it comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.tokenizer import ActionTokenizer


class TokenizerCodec:
    """Encodes and decodes chunks of one length.

    Args:
        tokenizer: of any kind.
        horizon: steps of a chunk, H.
    """

    def __init__(self, tokenizer: ActionTokenizer, horizon: int) -> None:
        self._tokenizer, self._horizon = tokenizer, horizon

    @classmethod
    def open(cls, folder: Path, horizon: int) -> TokenizerCodec:
        """Load a saved tokenizer; see `client.open_codec`."""
        return cls(load_action_tokenizer(folder), horizon)

    @property
    def kind(self) -> str:
        """Of the tokenizer."""
        return self._tokenizer.kind

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return self._horizon

    def reconstruct(
        self, robot: str, values: NDArray[np.float32], start: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The chunk f32[H, A0] that the codes of `values` stand for, where the state before it is `start` f32[S0]."""
        row = None if start is None else start[None]
        codes = self._tokenizer.encode(robot, values[None], row)
        return self._tokenizer.decode(robot, codes, self._horizon, row)[0]
