"""Pictures of numbers: a run's curves and a sample's actions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flagscale_vla.train.metrics import Line

Panel = tuple[str, str]
"""Title and field of `Line`."""

PANELS: tuple[Panel, ...] = (
    ("text loss (nats per token)", "text_loss"),
    ("flow loss (squared error per value)", "flow_loss"),
    ("share of the peak learning rate", "lr_share"),
    ("gradient norm before clipping", "grad_norm"),
    ("useful tokens per second", "useful_tokens_per_second"),
    ("share of padding", "padding_share"),
)


def draw_curves(lines: Sequence[Line]) -> Figure:
    """Each of `PANELS` over the steps."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    columns = {field: [line.__getattribute__(field) for line in lines] for _, field in PANELS}
    steps = [line.step for line in lines]
    for place, (title, field) in enumerate(PANELS):
        axes = figure.add_subplot(2, 3, place + 1)
        axes.plot(steps, [np.nan if value is None else value for value in columns[field]], linewidth=1.2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def draw_actions(values: NDArray[np.float32], valid: NDArray[np.bool_], names: Sequence[str]) -> Figure:
    """A chunk of actions f32[H, A0] in the robot's own units, one line per dim; untrained steps (bool[H]) shaded."""
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for dim, name in enumerate(names):
        axes.plot(values[:, dim], marker="o", markersize=3, linewidth=1.2, label=name)
    for step in np.flatnonzero(~valid):
        axes.axvspan(step - 0.5, step + 0.5, color="grey", alpha=0.2, linewidth=0)
    axes.set_xlabel("step of the chunk", fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return figure
