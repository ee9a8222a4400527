"""Statistics as LeRobot keeps them: of each feature, over an episode and over a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLED_FRAMES = 100
"""Pictures of an episode that count, evenly spaced."""
SAMPLED_SIDE = 150
"""Pixels along the longer side that count, evenly spaced."""
Stats = dict[str, list[Any]]


def number_stats(values: NDArray[Any]) -> Stats:
    """Of rows [n, width], each statistic [width]; quantiles are exact."""
    rows = values.astype(np.float64)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    found |= dict(zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(rows)]}


def sampled(frames: int) -> set[int]:
    """The frames of an episode whose pictures count."""
    return set(np.linspace(0, frames - 1, min(frames, SAMPLED_FRAMES)).round().astype(int).tolist())


def histogram(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel takes each value, i64[3, 256], over some pixels of a picture u8[h, w, 3]."""
    step = max(1, max(pixels.shape[:2]) // SAMPLED_SIDE)
    chosen = pixels[::step, ::step].reshape(-1, 3)
    return np.stack([np.bincount(chosen[:, channel], minlength=256) for channel in range(3)])


def picture_stats(counts: NDArray[np.int64], pictures: int) -> Stats:
    """Of a histogram i64[3, 256] over `pictures` frames: each statistic [3, 1, 1], where white is 1."""
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    seen = [np.flatnonzero(row) for row in counts]
    found = {
        "min": values[[row[0] for row in seen]],
        "max": values[[row[-1] for row in seen]],
        "mean": mean,
        "std": np.sqrt(np.maximum(shares @ values**2 - mean**2, 0)),
    }
    reached = shares.cumsum(axis=1)
    for name, share in QUANTILES.items():
        found[name] = values[(reached < share - 1e-12).sum(axis=1).clip(max=255)]
    return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [pictures]}
