"""How a robot's numbers are scaled, in the statistics that other programs scale by: mean and spread, or a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flagscale_vla.config.data import Normalization
from flagscale_vla.robots.statistics import Statistics, make_scaler, statistics_from_json

Lists = dict[str, list[float]]
MODES = {Normalization.mean_std: "MEAN_STD", Normalization.quantile: "MIN_MAX"}
"""LeRobot's name of the rule under which `public_statistics` scale as training did."""


def public_statistics(
    statistics: Mapping[str, Mapping[str, Mapping[str, Any]]], kind: Normalization
) -> dict[str, dict[str, Lists]]:
    """min, max, mean, std and count by robot, then by `state` and `action`; none of what was never seen.

    The pair that the rule in force reads is what training really scaled by: a constant dim, which is only shifted here,
    would be divided by a tiny number there, and a quantile range is given as minimum and maximum.

    Args:
        statistics: as `robots.statistics.statistics_to_json` gives them.
        kind: how training scaled.

    Raises:
        TypeError: a field is missing or unknown.
    """
    parts = {
        name: {"state": entry.state, "action": entry.action} for name, entry in statistics_from_json(statistics).items()
    }
    return {
        name: {part: _public(values, kind) for part, values in entry.items() if values.count}
        for name, entry in parts.items()
    }


def _public(values: Statistics, kind: Normalization) -> Lists:
    scaler = make_scaler(values, kind)
    shift, scale = scaler.shift.astype("float64"), scaler.scale.astype("float64")
    plain = {name: list(asdict(values)[name]) for name in ("min", "max", "mean", "std")}
    plain["count"] = [float(values.count)]
    if kind is Normalization.mean_std:
        return plain | {"mean": shift.tolist(), "std": scale.tolist()}
    return plain | {"min": (shift - scale).tolist(), "max": (shift + scale).tolist()}
