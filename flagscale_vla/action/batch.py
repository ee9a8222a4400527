"""What a batch is made of, group by group, and how its movements are turned to make more of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import permutations

import torch
from torch import Tensor

from flagscale_vla.action.keys import mix, uniform

AXES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All groups of one kind in a batch: n of them, from every robot and arm."""

    values: Tensor
    """f32[n, H, w] scaled, zero in slots without a dim"""
    weights: Tensor
    """f32[n, H, w] of the loss; zero in slots without a dim"""
    chunk_weights: Tensor
    """f32[n] in codebooks"""
    low: Tensor
    """f32[n, H, w] least value seen in training, scaled"""
    high: Tensor
    """f32[n, H, w]"""
    radians: Tensor
    """f32[n, H, w] that one scaled unit is"""
    shift: Tensor
    """f32[n, H, w] radians where the scaled value is zero"""
    keys: Tensor
    """i64[n] of the chunks' bits"""
    pinned: Tensor
    """bool[n], true where the curve begins at zero, which is where the robot is"""
    plain: Tensor
    """bool[n], false where `turn` has turned it"""


def join_groups(groups: Iterable[Group]) -> Group:
    """All of them as one; there must be one at least."""
    parts = list(groups)
    return Group(
        **{field.name: torch.cat([part.__getattribute__(field.name) for part in parts]) for field in fields(Group)}
    )


def turn(group: Group, share: float, seed: int, draw: int) -> Group:
    """Swap the axes of a share of the groups, and turn them round: one of the 48 symmetries of a cube for each.

    Which is a function of the chunk's bits, `seed` and `draw`. Groups of another width than three are left alone.
    """
    if group.values.shape[2] != AXES or not share:
        return group
    keys = mix(group.keys, seed, draw)
    orders = torch.tensor(list(permutations(range(AXES))))
    order = orders[(uniform(mix(keys, 0)) * len(orders)).to(torch.int64)]
    signs = torch.stack([(uniform(mix(keys, 1 + axis)) < 0.5).to(torch.float32) * 2 - 1 for axis in range(AXES)], dim=1)
    kept = uniform(mix(keys, 1 + AXES)) >= share
    order[kept], signs[kept] = torch.arange(AXES), 1.0
    return _turned(replace(group, plain=kept), order, signs[:, None])


def _turned(group: Group, order: Tensor, signs: Tensor) -> Group:
    """Axes i64[n, 3] to read, and the sign f32[n, 1, 3] of each."""

    def read(values: Tensor) -> Tensor:
        return values.gather(2, order[:, None].expand_as(values))

    low, high = read(group.low), read(group.high)
    return replace(
        group,
        values=read(group.values) * signs,
        weights=read(group.weights),
        low=torch.where(signs > 0, low, -high),
        high=torch.where(signs > 0, high, -low),
        radians=read(group.radians),
        shift=read(group.shift) * signs,
    )
