"""Where each chunk of a sample begins: the state of the robot that the sample tells last before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.records import Action, Segment, State


def chunks_with_starts(segments: Sequence[Segment]) -> Iterator[tuple[Action, NDArray[np.float32] | None]]:
    """The chunks of a sample in reading order, each with the last state f32[S0] before it, None where there is none."""
    state = None
    for segment in segments:
        if isinstance(segment, State):
            state = segment.values
        elif isinstance(segment, Action):
            yield segment, state
