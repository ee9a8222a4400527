"""Pictures of an action tokenizer: what comes back, what it costs, which codes are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flagscale_vla.action.tokenizer import Floats
from flagscale_vla.train.tokenizer_codes import BookUse
from flagscale_vla.train.tokenizer_metrics import FitLine
from flagscale_vla.train.tokenizer_peers import Curve

COLUMNS = 4


def draw_overlay(given: Floats, decoded: Floats, valid: NDArray[np.bool_], names: Sequence[str]) -> Figure:
    """A chunk f32[H, A0] and what it came back as, a panel per dim; steps past the episode's end (bool[H]) shaded."""
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(11, 1.7 * rows), layout="constrained")
    for dim, name in enumerate(names):
        axes = figure.add_subplot(rows, COLUMNS, dim + 1)
        axes.plot(given[:, dim], marker="o", markersize=3, linewidth=1.0, label="episode")
        axes.plot(decoded[:, dim], marker="x", markersize=3, linewidth=1.0, label="decoded")
        for step in np.flatnonzero(~valid):
            axes.axvspan(step - 0.5, step + 0.5, color="grey", alpha=0.2, linewidth=0)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=6)
    return figure


def draw_rates(curves: Sequence[Curve]) -> Figure:
    """Error over tokens, a line per tokenizer and a mark for each of its settings."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        points = sorted(curve.points, key=lambda point: point.tokens)
        axes.plot(
            [point.tokens for point in points],
            [point.mae for point in points],
            marker="o",
            markersize=4,
            linewidth=1.4,
            label=curve.name,
        )
        for point in points:
            axes.annotate(point.label, (point.tokens, point.mae), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens per chunk, mean over held-out chunks")
    axes.set_ylabel("mean absolute error, scaled values")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def draw_use(books: Sequence[BookUse]) -> Figure:
    """Which share of each codebook is used on training chunks, and its perplexity as a share of its codes."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(books))
    axes.bar(places - 0.2, [book.share_used for book in books], 0.4, label="codes used")
    axes.bar(places + 0.2, [book.perplexity / book.codes for book in books], 0.4, label="perplexity / codes")
    axes.set_xticks(places, [f"{book.kind}\nlayer {book.layer}" for book in books], fontsize=7)
    axes.set_ylim(0.0, 1.05)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    return figure


def draw_robots(errors: Mapping[str, Mapping[str, float]]) -> Figure:
    """Error of each robot, a bar per tokenizer: tokenizer to robot to mean absolute error."""
    robots = sorted({robot for by_robot in errors.values() for robot in by_robot})
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places, width = np.arange(len(robots)), 0.8 / len(errors)
    for number, (name, by_robot) in enumerate(errors.items()):
        heights = [by_robot.get(robot, np.nan) for robot in robots]
        axes.bar(places + width * (number - (len(errors) - 1) / 2), heights, width, label=name)
    axes.set_xticks(places, robots, fontsize=8)
    axes.set_ylabel("mean absolute error", fontsize=8)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    return figure


def draw_fit(lines: Sequence[FitLine]) -> Figure:
    """Each figure of the fit over its steps."""
    names = list(lines[-1].figures)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(11, 2.0 * rows), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.plot([line.step for line in lines], [line.figures.get(name, np.nan) for line in lines], linewidth=1.2)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
    return figure
