"""From noise to actions: Euler steps along the model's velocity, with the prefix's keys and values kept."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from flagscale_vla.mcore.attention import PrefixCache, use_prefix_cache
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.records import PackedBatch


@torch.no_grad()
def denoise(model: VisionLanguageAction, batch: PackedBatch, steps: int) -> Tensor:
    """Integrate dx/dt = v from pure noise at t = 1 to actions at t = 0 (EO-1 report, section 3).

    Each document of the row is one prompt with one chunk, whose noise is where it starts from. What stands before a
    chunk is run once; each step then runs the chunk's tokens alone.

    Args:
        model: a whole model: one stage, one rank.
        batch: a row of prompts without padding, on the model's device.
        steps: Euler steps.

    Returns:
        f32[C, H, A] normalised actions.
    """
    chunks, horizon, _ = batch.noise.shape
    starts, firsts = batch.cu_seqlens[:-1].tolist(), batch.action_slots[:, 0].tolist()
    cache = PrefixCache()
    with use_prefix_cache(model, cache):
        cache.bounds = _run_prefix(model, batch, list(zip(starts, firsts, strict=True)))
        bounds = torch.arange(0, (chunks + 1) * horizon, horizon, dtype=torch.int32)
        positions = batch.positions[:, batch.action_slots.flatten()]
        actions = batch.noise
        for step in range(steps):
            time = torch.full((chunks,), 1.0 - step / steps, device=actions.device)
            inputs = model.flow_in.actions(actions, time).flatten(0, 1).to(model.config.params_dtype)
            hidden = model.language.transform(inputs, bounds, positions).squeeze(1)
            actions = actions - model.flow_out(hidden).unflatten(0, (chunks, horizon)) / steps
    return actions


def _run_prefix(model: VisionLanguageAction, batch: PackedBatch, spans: list[tuple[int, int]]) -> tuple[int, ...]:
    """Fill the cache with the rows of each (start, end) span; returns the spans' borders laid end to end."""
    rows = torch.cat([torch.arange(start, end) for start, end in spans]).to(batch.tokens.device)
    bounds = tuple(accumulate((end - start for start, end in spans), initial=0))
    model.language.transform(
        model.embed(batch)[rows], torch.tensor(bounds, dtype=torch.int32), batch.positions[:, rows]
    )
    return bounds
