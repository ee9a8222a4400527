"""How large a share of each peak learning rate a step is made with."""

from __future__ import annotations

import math


def lr_share(step: int, *, steps: int, warmup_steps: int, final_share: float) -> float:
    """The share in (0, 1] of the peak learning rate for a step: linear warmup, then half a cosine.

    The first step has 1/warmup_steps, step `warmup_steps` has 1, and step `steps` has `final_share`
    (Loshchilov and Hutter, SGDR, equation 5, without restarts).

    Args:
        step: the step that is made, counted from 1.
        steps: steps of the whole run.
        warmup_steps: steps until the peak is reached.
        final_share: the share left at the last step.
    """
    assert 1 <= step <= steps, (step, steps)
    if step <= warmup_steps:
        return step / warmup_steps
    done = (step - warmup_steps) / (steps - warmup_steps)
    return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * done))
