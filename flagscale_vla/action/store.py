"""Opening an action tokenizer of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flagscale_vla.action.beast import Beast
from flagscale_vla.action.binning import Binning
from flagscale_vla.action.fast import Fast
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.stored import ACTION_TOKENIZER_FILE, Stored, read_stored
from flagscale_vla.action.tokenizer import ActionTokenizer

READERS: dict[str, Callable[[Stored], ActionTokenizer]] = {
    Fast.kind: Fast.from_stored,
    Beast.kind: Beast.from_stored,
    Binning.kind: Binning.from_stored,
    OmniSat.kind: OmniSat.from_stored,
}
"""How each kind is made of what lies on disk."""


def load_action_tokenizer(folder: Path) -> ActionTokenizer:
    """The tokenizer that a `save` wrote to `folder`.

    Raises:
        ValueError: a file is missing, damaged, of another version or kind; or the statistics are not its robots'.
    """
    stored = read_stored(folder)
    if stored.kind not in READERS:
        rule = f"must be one of {sorted(READERS)}"
        raise ValueError(f"{folder / ACTION_TOKENIZER_FILE} has kind={stored.kind!r}: {rule}")
    try:
        return READERS[stored.kind](stored)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / ACTION_TOKENIZER_FILE} is another version's or not whole: {error!r}") from error
