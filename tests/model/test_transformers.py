"""Our forward equals transformers' in float32 on the same random weights, for every family of models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flagscale_vla.config.model import VisionKind
from flagscale_vla.hf.table import to_ours
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.pixels import cut_patches
from flagscale_vla.model.vla import VisionLanguageAction
from tests.helpers import run_ranks
from tests.model.peers import peer, peer_outputs, state_dict
from tests.model.rows import ACTIONS, FAMILIES, IMAGES, TEXT_ONLY, Document, make_row, settings, tiled

TOLERANCE = 1e-5
ROWS = {
    "text": [Document(40)],
    "one image": [Document(12, images=((4, 8),))],
    "images of different sizes": [Document(9, images=((4, 8), (12, 4), (2, 2)))],
    "packed text": TEXT_ONLY,
    "packed images": IMAGES,
    "packed, images and long text": [*ACTIONS[2:], *IMAGES, Document(60)],
}
FILMS = {
    "a film": [Document(12, film=(3, 8, 4))],
    "packed films and images": [*IMAGES, Document(9, images=((4, 8),), film=(2, 12, 8)), Document(5, film=(4, 2, 2))],
}
"""InternVL has no films."""


def compare(rank: int, family: str, tied: bool) -> dict[str, tuple[float, float]]:
    """Largest difference of hidden states and of logits over every document of each packed row."""
    run = settings(*FAMILIES[family], f"model.language.tied={tied}")
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    ours = VisionLanguageAction(run.model, run.parallel, platform, topology).eval()
    theirs = peer(run.model)
    missing = ours.load_state_dict(to_ours(run.model, state_dict(theirs, run.model)), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("flow") or "_extra_state" in name for name in missing.missing_keys)
    kind, length = run.model.vision.kind, run.data.pack_length
    rows = {name: tiled(row) for name, row in ROWS.items()} if kind is VisionKind.internvit else ROWS | FILMS
    return {name: compare_row(ours, theirs, documents, length, kind) for name, documents in rows.items()}


@torch.no_grad()
def compare_row(
    ours: VisionLanguageAction, theirs, documents: list[Document], length: int, kind: VisionKind
) -> tuple[float, float]:
    batch = make_row(documents, length, kind=kind)
    hidden, logits = our_outputs(ours, batch)
    reference, reference_logits = peer_outputs(theirs, kind, documents, batch)
    return (hidden - reference).abs().max().item(), (logits - reference_logits).abs().max().item()


def our_outputs(model: VisionLanguageAction, batch) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of every token that is not padding, from one packed row."""
    words = model.language.embed(batch.tokens)
    images = model.vision(cut_patches(batch.pixels, batch.frames, batch.grid, model.patch_frames), batch.grid)
    real = batch.image_slots >= 0
    words = words.index_copy(0, batch.image_slots[real], images[real])
    hidden = model.language.transform(words, batch.cu_seqlens, batch.positions).squeeze(1)[: batch.num_tokens]
    return hidden, model.language.logits(hidden)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_equals_transformers(family: str, tied: bool) -> None:
    differences = run_ranks(compare, 1, family, tied)[0]
    assert len(differences) == len(ROWS) + (len(FILMS) if family != "internvl" else 0)
    assert {name: hidden for name, (hidden, _) in differences.items() if hidden >= TOLERANCE} == {}
    assert {name: logits for name, (_, logits) in differences.items() if logits >= TOLERANCE} == {}
