"""Images are shared out evenly, and their tokens come back in order."""

from __future__ import annotations

import pytest
import torch

from flagscale_vla.model.patches import GROUP
from flagscale_vla.model.shares import most_tokens, share_out, token_places


@pytest.mark.parametrize(
    ("patches", "size", "shares"),
    [
        ([16, 32, 32, 4], 2, [[0, 1], [2, 3]]),
        ([64, 4, 4, 4], 2, [[0], [1, 2, 3]]),
        ([16], 3, [[0], [], []]),
    ],
)
def test_images_go_to_the_rank_with_the_fewest_patches(patches: list[int], size: int, shares: list[list[int]]) -> None:
    assert share_out(patches, size) == shares


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_tokens_come_back_in_the_order_of_the_images(size: int) -> None:
    patches = [16, 32, 4, 64, 8]
    tokens = torch.arange(sum(patches) // GROUP).split([count // GROUP for count in patches])
    shares = share_out(patches, size)
    longest = most_tokens(patches, shares)
    padded = [
        torch.cat([*(tokens[image] for image in share), torch.full((longest,), -1)])[:longest] for share in shares
    ]
    assert torch.equal(torch.cat(padded)[token_places(patches, shares)], torch.cat(tokens))
