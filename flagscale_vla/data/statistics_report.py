"""The page on a source's statistics: a table and a row of histograms for each kind of vector of each robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flagscale_vla.data.gather import Gatherers
from flagscale_vla.reports.pages import figure_uri, write_report
from flagscale_vla.robots.statistics import Gatherer

BINS = 40
PER_ROW = 7
COLUMNS = ("min", "q01", "median", "q99", "max", "mean", "std", "quantile_error")
TITLES = {
    "state": "states",
    "action": "actions",
    "delta": "actions less the state their chunk begins at, where names match",
    "step": "actions less the action before",
}


def write_page(folder: Path, content: Mapping[str, Any], gatherers: Gatherers, config: str) -> Path:
    """Write `report.html`; returns its path."""
    parts = [
        {
            "robot": robot,
            "title": TITLES[kind],
            "count": entry["count"],
            "constant": entry["constant"],
            "rows": table(entry),
            "picture": histograms(gatherers[robot, kind], entry["names"]),
        }
        for robot, kinds in content["robots"].items()
        for kind, entry in kinds.items()
    ]
    about = {name: content[name] for name in ("source", "samples", "faults", "sketch")}
    values = {"about": about, "shards": len(content["shards"]), "columns": COLUMNS, "parts": parts, "config": config}
    return write_report(folder, "statistics.html.j2", values)


def table(entry: Mapping[str, Any]) -> list[dict[str, object]]:
    """A row for each dim, numbers as text."""
    return [
        {
            "name": name,
            "constant": name in entry["constant"],
            "numbers": [f"{entry[column][dim]:.4g}" for column in COLUMNS],
        }
        for dim, name in enumerate(entry["names"])
    ]


def histograms(gatherer: Gatherer, names: Sequence[str]) -> str:
    """How often a dim takes which value, from its 0.1st to its 99.9th percentile; the outermost bars have the rest."""
    columns = min(PER_ROW, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.8 * columns, 1.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    (low, _), (high, _) = gatherer.quantiles(0.001), gatherer.quantiles(0.999)
    for axis in grid[len(names) :]:
        axis.axis("off")
    for axis, name, sketch, first, last in zip(grid, names, gatherer.sketches, low, high, strict=False):
        margin = max(last - first, abs(first) * 1e-3, 1e-6) * 0.02
        edges = np.linspace(first - margin, last + margin, BINS + 1)
        axis.stairs(sketch.histogram(edges), edges, fill=True)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=6)
        axis.set_yticks([])
    return figure_uri(figure)
