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
    cache = PrefixCache()
    with use_prefix_cache(model, cache):
        run_prefix(model, batch, cache)
        return integrate(model, batch, steps, cache, batch.positions[:, batch.action_slots.flatten()])


def run_prefix(model: VisionLanguageAction, batch: PackedBatch, cache: PrefixCache) -> Tensor:
    """Fill the cache with what stands before each document's chunk; returns hidden states [N, H] at its last tokens."""
    starts, firsts = batch.cu_seqlens[:-1].tolist(), batch.action_slots[:, 0].tolist()
    spans = list(zip(starts, firsts, strict=True))
    rows = torch.cat([torch.arange(start, end) for start, end in spans]).to(batch.tokens.device)
    bounds = tuple(accumulate((end - start for start, end in spans), initial=0))
    hidden = run_rows(model, model.embed(batch)[rows], bounds, batch.positions[:, rows])
    cache.extend(bounds)
    return hidden[torch.tensor(bounds[1:], device=hidden.device) - 1]


def run_rows(model: VisionLanguageAction, inputs: Tensor, bounds: tuple[int, ...], positions: Tensor) -> Tensor:
    """Hidden states [S, H] of inputs [S, H] of documents with these borders, at positions i64[3, S]."""
    return model.language.transform(inputs, torch.tensor(bounds, dtype=torch.int32), positions).squeeze(1)


def integrate(
    model: VisionLanguageAction, batch: PackedBatch, steps: int, cache: PrefixCache, positions: Tensor
) -> Tensor:
    """The Euler steps of `denoise` behind a filled cache, which stays as it is.

    Args:
        model: as there.
        batch: its noise is where they start from.
        steps: of them.
        cache: of all that the chunks may see.
        positions: i64[3, C * H] of the chunks' tokens.
    """
    chunks, horizon, _ = batch.noise.shape
    bounds = tuple(range(0, (chunks + 1) * horizon, horizon))
    cache.grows = False
    actions = batch.noise
    for step in range(steps):
        time = torch.full((chunks,), 1.0 - step / steps, device=actions.device)
        inputs = model.flow_in.actions(actions, time).flatten(0, 1).to(model.config.params_dtype)
        hidden = run_rows(model, inputs, bounds, positions)
        actions = actions - model.flow_out(hidden).unflatten(0, (chunks, horizon)) / steps
    return actions
