"""Images shared out over the context ranks: each runs the vision tower on its own, and every rank gets all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from flagscale_vla.mcore.megatron import gather_context_rows
from flagscale_vla.model.patches import GROUP

Tower = Callable[[Tensor, Tensor], Tensor]
"""Pixels u8[P, width] and grid i64[I, 3] to tokens [P/4, H]."""


def run_shared(tower: Tower, pixels: Tensor, grid: Tensor, size: int, rank: int) -> Tensor:
    """Tokens [P/4, H] of all images, of which context rank `rank` of `size` computes its share.

    Args:
        tower: the vision tower.
        pixels: u8[P, width], all images' patches.
        grid: i64[I, 3] on the CPU, patches of each image along (time, height, width).
    """
    if size == 1:
        return tower(pixels, grid)
    patches = [int(count) for count in grid.prod(1)]
    shares = share_out(patches, size)
    # A rank without an image runs the smallest one, so that its weights have a gradient: zero, for nobody reads it.
    mine = shares[rank] or [patches.index(min(patches))]
    starts = [0, *accumulate(patches)]
    tokens = tower(torch.cat([pixels[starts[image] : starts[image + 1]] for image in mine]), grid[mine])
    longest = most_tokens(patches, shares)
    gathered = gather_context_rows(F.pad(tokens, (0, 0, 0, longest - len(tokens))))
    return gathered.index_select(0, token_places(patches, shares).to(gathered.device))


def share_out(patches: Sequence[int], size: int) -> list[list[int]]:
    """Images of each of `size` ranks: the largest first, each to the rank with the fewest patches (Graham 1969)."""
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for image in sorted(range(len(patches)), key=lambda image: -patches[image]):
        rank = loads.index(min(loads))
        shares[rank].append(image)
        loads[rank] += patches[image]
    return [sorted(share) for share in shares]


def most_tokens(patches: Sequence[int], shares: Sequence[Sequence[int]]) -> int:
    """Tokens of the largest share."""
    return max(sum(patches[image] for image in share) for share in shares) // GROUP


def token_places(patches: Sequence[int], shares: Sequence[Sequence[int]]) -> Tensor:
    """Where the images' tokens are, i64[P/4], among shares that are laid end to end, each padded to the largest."""
    longest = most_tokens(patches, shares)
    places: dict[int, Tensor] = {}
    for rank, share in enumerate(shares):
        start = rank * longest
        for image in share:
            places[image] = torch.arange(start, start + patches[image] // GROUP)
            start += patches[image] // GROUP
    return torch.cat([places[image] for image in range(len(patches))])
