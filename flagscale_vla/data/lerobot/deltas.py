"""Actions as steps from one frame to the next, the way EO-1 makes them, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[np.float32]


def difference(actions: Actions, absolute: Sequence[int] = ()) -> Actions:
    """What each action adds to the one before: row t is action[t + 1] - action[t], and the last row comes twice.

    An episode of one frame does not move. EO-1, `eo/data/lerobot_dataset.py`, `set_delta_action`.

    Args:
        actions: f32[T, A0] of one episode.
        absolute: dims that keep their own values, as grippers do (`effector_indices`).

    Returns:
        f32[T, A0].
    """
    check_dims(absolute, actions.shape[1])
    deltas = np.zeros_like(actions)
    if len(actions) > 1:
        deltas[:-1] = np.diff(actions, axis=0)
        deltas[-1] = deltas[-2]
    deltas[:, list(absolute)] = actions[:, list(absolute)]
    return deltas


def integrate(deltas: Actions, first: Actions, absolute: Sequence[int] = ()) -> Actions:
    """The actions behind a run of deltas: row t is the action at frame t, of which `first`, f32[A0], is the first.

    The inverse of `difference` but for the episode's last delta, which says nothing.

    Args:
        deltas: f32[T, A0].
        absolute: as in `difference`.

    Returns:
        f32[T, A0].
    """
    check_dims(absolute, deltas.shape[1])
    actions = np.concatenate([first[None], first + np.cumsum(deltas[:-1], axis=0, dtype=np.float64)])
    actions[:, list(absolute)] = deltas[:, list(absolute)]
    return actions.astype(np.float32)


def check_dims(dims: Sequence[int], width: int) -> None:
    """Refuse indices that are not those of dims.

    Raises:
        ValueError: one is negative, too large, or comes twice.
    """
    if sorted(set(dims) & set(range(width))) != sorted(dims):
        raise ValueError(f"effector_indices={list(dims)} must be different dims of the action, in [0, {width - 1}]")


def chunk(actions: Actions, frame: int, horizon: int) -> tuple[Actions, NDArray[np.bool_]]:
    """The `horizon` actions from `frame` on, f32[H, A0], and which of them lie within the episode, bool[H].

    Past the end the last one is repeated.
    """
    steps = np.arange(frame, frame + horizon)
    last = len(actions) - 1
    return actions[np.minimum(steps, last)], steps <= last
