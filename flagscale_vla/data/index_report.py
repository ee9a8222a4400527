"""The page about an index: how long samples are, which robots they are of, what is bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flagscale_vla.data.faults import Fault
from flagscale_vla.data.index import Index
from flagscale_vla.reports.pages import figure_uri, write_report

LISTED = 200
"""Faults on the page; the file beside it has all."""
BARS = 60
SHARES = (0, 1, 25, 50, 75, 99, 100)
"""Percentiles in the table."""


def write_page(folder: Path, indices: Mapping[str, Index], faults: Sequence[Fault], figures: Mapping[str, Any]) -> Path:
    """Write `report.html`; its path."""
    values = {
        "url": ", ".join(sorted({index.store.url for index in indices.values()})),
        "splits": {split: figures[split] for split in indices},
        "robots": sorted({robot for split in indices for robot in figures[split]["robots"]}),
        "percentiles": [f"{share} %" for share in SHARES],
        "lengths": {split: lengths_row(index) for split, index in indices.items() if len(index)},
        "picture": lengths_picture(indices),
        "verified": figures["verified"],
        "changed": figures["changed"],
        "faults": faults[:LISTED],
        "unlisted": len(faults[LISTED:]),
        "seconds": figures["seconds"],
    }
    return write_report(folder, "index.html.j2", values)


def lengths_row(index: Index) -> list[int]:
    """Tokens at each of the percentiles."""
    return np.percentile(index.lengths, SHARES, method="nearest").astype(int).tolist()


def lengths_picture(indices: Mapping[str, Index]) -> str:
    """How many samples have how many tokens, by split, as a `data:` address."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    longest = max((int(index.lengths.max()) for index in indices.values() if len(index)), default=1)
    edges = np.unique(np.geomspace(1, longest + 1, BARS + 1).round().astype(int))
    for split, index in indices.items():
        axes.hist(index.lengths, edges.tolist(), histtype="step", label=f"{split}: {len(index)} samples")
    axes.set(xlabel="tokens of a sample", ylabel="samples", xscale="log", yscale="log")
    axes.legend()
    return figure_uri(figure)
