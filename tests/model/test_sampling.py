"""Denoising with a kept prefix equals running the whole row at every step."""

from __future__ import annotations

from dataclasses import replace

import torch

from flagscale_vla.mcore.initial import draw_weights
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.sampling import denoise
from flagscale_vla.model.vla import VisionLanguageAction
from tests.helpers import run_ranks
from tests.model.rows import Document, make_row, settings

PROMPTS = [
    Document(11, images=((4, 4), (8, 8)), acts=True),
    Document(6, acts=True),
    Document(11, images=((4, 4), (8, 8)), acts=True),
    Document(9, images=((8, 4),), acts=True),
]
STEPS = 5


@torch.no_grad()
def denoise_whole(model: VisionLanguageAction, batch) -> torch.Tensor:
    """Euler steps, each over the whole row."""
    actions = batch.noise
    for step in range(STEPS):
        time = torch.full((len(actions),), 1.0 - step / STEPS)
        # At time 0 with these actions the row holds x_t itself; the head must still be told the flow time.
        noise = (actions - (1 - time)[:, None, None] * batch.actions) / time[:, None, None]
        velocity = model(replace(batch, noise=noise, time=time)).velocities
        actions = actions - velocity / STEPS
    return actions


def both(rank: int) -> tuple[float, float, float]:
    run = settings()
    platform = choose_platform(run.platform)
    model = VisionLanguageAction(run.model, run.parallel, platform, Topology.start(run.parallel, platform)).eval()
    draw_weights(model, 0)
    length = sum(document.length for document in PROMPTS)
    batch = make_row(PROMPTS, length)
    whole, kept = denoise_whole(model, batch), denoise(model, batch, STEPS)
    alone = denoise(model, make_row(PROMPTS[:1], PROMPTS[0].length), STEPS)
    assert alone.shape == (1, *kept.shape[1:])
    moved = (kept - batch.noise).abs().max()
    return float((whole - kept).abs().max()), float(moved), float(kept.abs().max())


def test_a_kept_prefix_changes_nothing() -> None:
    difference, moved, _ = run_ranks(both, 1)[0]
    assert difference < 1e-5
    assert moved > 0.1
