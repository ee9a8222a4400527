"""Which rows are held out, and which go into one shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.data.convert.converter import Unit
from flagscale_vla.data.shards import SPLITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An episode, or a line of a file: what stays together."""

    name: str
    """decides about the split"""
    samples: int
    """how many it gives, about"""
    payload: object
    """becomes one entry of its unit's payload"""


def split_of(name: str, heldout_share: float) -> str:
    """`heldout` for about this share of names, the same ones on every machine and in every run."""
    return "heldout" if hash_share(name) < heldout_share else "train"


def hash_share(name: str) -> float:
    """A number in [0, 1) that a name always has; those of many names are spread evenly."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") / 2.0**64


def group_rows(rows: Iterable[Row], run: ConvertRun) -> list[Unit]:
    """Rows in their order, as many to a unit as `samples_per_shard` lets in; a unit's payload is a tuple of theirs."""
    open_units: dict[str, tuple[int, list[object]]] = {split: (0, []) for split in SPLITS}
    groups: dict[str, list[list[object]]] = {split: [] for split in SPLITS}
    for row in rows:
        split = split_of(row.name, run.heldout_share)
        count, payloads = open_units[split]
        if not payloads or count + row.samples > run.samples_per_shard:
            count, payloads = 0, []
            groups[split].append(payloads)
        payloads.append(row.payload)
        open_units[split] = (count + row.samples, payloads)
    return [
        Unit(name=f"{split}-{number:06d}", split=split, payload=tuple(payloads))
        for split in SPLITS
        for number, payloads in enumerate(groups[split])
    ]
