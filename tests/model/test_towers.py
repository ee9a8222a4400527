"""A vision tower over two tensor ranks gives the tokens and the gradients of one; and what a tower refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flagscale_vla.config.model import ModelConfig
from flagscale_vla.hf.table import name_table
from flagscale_vla.mcore.platform import Platform, choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.pixels import cut_patches
from flagscale_vla.model.tiles import DUMMY, plan_tiles
from flagscale_vla.model.towers import build_vision
from tests.helpers import run_ranks
from tests.model.rows import ACTIONS, FAMILIES, IMAGES, make_row, settings, tiled

TOLERANCE = 1e-5
TENSORS = {"qwen2_5_vl": 26, "qwen2_vl": 31, "internvl": 38}
"""Of each tower of two layers: fewer would mean that a part of it is not compared."""


def part(whole: torch.Tensor, shape: torch.Size, rank: int) -> torch.Tensor:
    """This tensor rank's part of a tensor, which is split along the one axis that is shorter here."""
    axes = [axis for axis in range(whole.dim()) if whole.shape[axis] != shape[axis]]
    return whole.narrow(axes[0], rank * shape[axes[0]], shape[axes[0]]) if axes else whole


def weights(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Random tensors of a tower, by its own names: no norm of one, no bias of zero."""
    random = torch.Generator().manual_seed(0)
    rows = {row.ours.removeprefix("vision."): row.shape for row in name_table(model) if row.ours.startswith("vision.")}
    return {name: 0.2 * torch.randn(shape, generator=random) for name, shape in rows.items()}


def in_tensor_order(name: str, whole: torch.Tensor, ranks: int, gated: bool) -> torch.Tensor:
    """A gated MLP's gate and up projection lie side by side on every rank: their rows, rank by rank."""
    if not (gated and "blocks" in name and "linear_fc1" in name):
        return whole
    return whole.unflatten(0, (2, ranks, -1)).transpose(0, 1).flatten(0, 2)


RECOMPUTE = {
    "keep": [],
    "full": ["parallel.vision_recompute.granularity=full"],
    "selective": [
        "parallel.vision_recompute.granularity=selective",
        "parallel.vision_recompute.modules=[core_attn]",
    ],
}
CASES = [(family, recompute) for family in FAMILIES for recompute in RECOMPUTE]


def gradients(rank: int, ranks: int) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Tokens and gradients of this rank for every case, of one product of the tokens."""
    run = settings(f"parallel.tensor={ranks}")
    platform = choose_platform(run.platform)
    Topology.start(run.parallel, platform)
    return {case: gradients_of(*case, rank, ranks, platform) for case in CASES}


def gradients_of(family: str, recompute: str, rank: int, ranks: int, platform: Platform) -> dict[str, np.ndarray]:
    run = settings(*FAMILIES[family], *RECOMPUTE[recompute], f"parallel.tensor={ranks}")
    tower = build_vision(run.model, run.parallel, platform)
    for name, parameter in tower.named_parameters():
        whole = in_tensor_order(name, weights(run.model)[name], ranks, gated=family == "qwen2_5_vl")
        parameter.data.copy_(part(whole, parameter.shape, rank))
    documents = [*IMAGES, *ACTIONS]
    documents = tiled(documents) if family == "internvl" else documents
    batch = make_row(documents, 256, kind=run.model.vision.kind)
    tokens = tower(cut_patches(batch.pixels, batch.frames, batch.grid, run.model.vision.patch_frames), batch.grid)
    (tokens * torch.linspace(-1.0, 1.0, tokens.numel()).reshape(tokens.shape)).sum().backward()
    found = {name: parameter.grad.numpy() for name, parameter in tower.named_parameters()}
    return {"tokens": tokens.detach().numpy(), **found}


@pytest.fixture(scope="module")
def found() -> tuple[dict, list[dict]]:
    """Of one rank, and of each of two."""
    return run_ranks(gradients, 1, 1)[0], run_ranks(gradients, 2, 2)


@pytest.mark.ranks
@pytest.mark.parametrize(("family", "recompute"), CASES)
def test_two_tensor_ranks_equal_one(family: str, recompute: str, found: tuple[dict, list[dict]]) -> None:
    one, many = found[0][family, "keep"], [rank[family, recompute] for rank in found[1]]
    assert len(one) == TENSORS[family] + 1
    for name, expected in one.items():
        whole = in_tensor_order(name, torch.from_numpy(expected), 2, gated=family == "qwen2_5_vl")
        for rank, parts in enumerate(many):
            wanted = part(whole, parts[name].shape, rank)
            assert wanted.norm() > 0, name
            assert (torch.from_numpy(parts[name]) - wanted).norm() / wanted.norm() < TOLERANCE, name


def test_tiles_come_after_their_class_token() -> None:
    plan = plan_tiles(((1, 4, 4), DUMMY), side=4)
    assert plan.rows.tolist() == [0, *range(1, 17), 0, *range(17, 21)]
    assert plan.patches.tolist() == [*range(1, 17), *range(18, 22)]
    assert plan.bounds.tolist() == [[0, 17, 22]]
    # Two by two patches together; 4 patches in a row; place 0 is the class token's.
    assert plan.places.tolist()[:8] == [1, 2, 5, 6, 3, 4, 7, 8]
    assert plan.places.tolist()[16:] == [1, 2, 5, 6]


@pytest.mark.parametrize("grid", [(1, 4, 6), (1, 6, 6), (2, 4, 4)])
def test_an_image_without_positions_is_refused(grid: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="positions for images of 4 x 4 patches alone"):
        plan_tiles(((1, 4, 4), grid), side=4)
