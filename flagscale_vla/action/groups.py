"""A robot's chunks cut into groups, one per part, each as the control points of its kind's spline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flagscale_vla.action.spline import spline
from flagscale_vla.config.tokenizer import KindConfig, OmniSatConfig
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.layout import Kind, Part, parts_of

Doubles = NDArray[np.float64]


def kinds_of(robots: Iterable[Embodiment]) -> tuple[Kind, ...]:
    """The kinds of group that some robot has, in the order of `Kind`."""
    found = {part.kind for robot in robots for part in parts_of(robot)}
    return tuple(kind for kind in Kind if kind in found)


def kind_configs(config: OmniSatConfig) -> Mapping[Kind, KindConfig]:
    """The settings of each kind."""
    return {Kind(name): entry for name, entry in config.kinds().items()}


@cache
def fitting(horizon: int, points: int, degree: int, ridge: float, *, pinned: bool = False) -> Tensor:
    """From a chunk's steps to control points, f32[points, horizon]; of a pinned curve the first one is zero.

    A chunk with fewer steps than points is first filled in between them: straight, or for degree 0 by the step before.
    """
    steps = max(horizon, points)
    fitted = spline(steps, points, degree, ridge)
    operator = np.pad(fitted.pinned, ((1, 0), (0, 0))) if pinned else fitted.fitting
    return torch.from_numpy(operator @ _refine(horizon, steps, hold=degree == 0)).to(torch.float32)


@cache
def evaluation(horizon: int, points: int, degree: int, *, pinned: bool = False) -> Tensor:
    """From control points to a chunk's steps, f32[horizon, points]; a pinned curve begins at zero, to the bit."""
    basis = spline(horizon, points, degree, 0.0).basis.copy()
    if pinned:
        basis[:, 0] = 0.0
    return torch.from_numpy(basis).to(torch.float32)


def _refine(horizon: int, steps: int, *, hold: bool) -> Doubles:
    """Reads a chunk of `horizon` steps at `steps` equally spaced times, f64[steps, horizon]."""
    if horizon == steps:
        return np.eye(steps)
    if horizon == 1:
        return np.ones((steps, 1))
    if hold:
        # The last step that lies in this piece of the spline or before it, so that it is read back where it was.
        held = (np.arange(1, steps + 1) * (horizon - 1) - 1) // steps
        held[-1] = horizon - 1
        return np.asarray(np.eye(horizon)[held])
    return spline(steps, horizon, 1, 0.0).basis


def slots(chunks: Tensor, part: Part) -> Tensor:
    """The dims of a part in the slots of its kind, f32[n, H, width] of f32[n, H, A0]; slots without a dim are zero."""
    filled = chunks.new_zeros(*chunks.shape[:2], part.kind.width)
    filled[..., list(part.slots)] = chunks[..., list(part.dims)]
    return filled


def to_points(filled: Tensor, config: KindConfig, ridge: float, pinned: Tensor) -> Tensor:
    """Control points f32[n, T_c * width] of f32[n, H, width]; `pinned` bool[n] tells the curves that begin at zero."""

    def fit(chosen: bool) -> Tensor:
        return (fitting(filled.shape[1], config.points, config.degree, ridge, pinned=chosen) @ filled).flatten(1)

    return _either(fit, pinned)


def from_points(points: Tensor, config: KindConfig, horizon: int, pinned: Tensor) -> Tensor:
    """The curve at each step, f32[n, H, width], of control points f32[n, T_c * width]; `pinned` as in `to_points`."""
    unflat = points.unflatten(1, (config.points, -1))

    def evaluate(chosen: bool) -> Tensor:
        return evaluation(horizon, config.points, config.degree, pinned=chosen) @ unflat

    return _either(evaluate, pinned)


def _either(operate: Callable[[bool], Tensor], pinned: Tensor) -> Tensor:
    """Rows of what is done to pinned curves, and of what to others."""
    if not pinned.any():
        return operate(False)
    both = operate(True), operate(False)
    return torch.where(pinned.view(-1, *(1,) * (both[0].dim() - 1)), *both)
