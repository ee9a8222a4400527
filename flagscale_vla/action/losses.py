"""How far decoded chunks are from the ones they stand for, where gradients are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from flagscale_vla.robots.layout import Kind

STEPPED = (Kind.position, Kind.rotation)
"""Kinds whose actions are steps, which add up."""
AT_LIMIT = 1e-5
"""A value this near to the end of its range counts as lying there."""


def distance(decoded: Tensor, wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The absolute error f32[n, H, w] that is left once decoded values are brought into [low, high], all in one shape.

    Where the wanted value is the end of its range, all values past it are right, and a gradient would only waste codes
    on what is cut off. Elsewhere a value past the end is still drawn back.
    """
    error = decoded - wanted
    past = ((wanted >= high - AT_LIMIT) & (error > 0)) | ((wanted <= low + AT_LIMIT) & (error < 0))
    return torch.where(past, torch.zeros_like(error), error.abs())


def drift(decoded: Tensor, wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The size of the running sum of errors f32[..., H, w], per step: how far one has been led astray by then.

    Actions that are steps add up, so an error that keeps its sign costs more than one that comes and goes.
    """
    away = torch.minimum(torch.maximum(decoded, low), high) - wanted
    return away.cumsum(dim=-2).abs() / away.shape[-2]


def geodesic(first: Tensor, second: Tensor) -> Tensor:
    """The angle of the rotation from one to the other, f32[...] in [0, pi] radians, of rotation vectors f32[..., 3].

    The geodesic distance on SO(3) by way of quaternions; differentiable where the two are equal, too.
    """
    one, other = _quaternion(first), _quaternion(second)
    real = (one * other).sum(dim=-1)
    turn = one[..., :1] * other[..., 1:] - other[..., :1] * one[..., 1:] - torch.cross(one[..., 1:], other[..., 1:], -1)
    # The root of zero has no gradient.
    length = (turn.square().sum(dim=-1) + 1e-12).sqrt()
    return 2 * torch.atan2(length, real.abs())


def _quaternion(vectors: Tensor) -> Tensor:
    """Unit quaternions f32[..., 4], real part first."""
    half = (vectors.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt() / 2
    return torch.cat([half.cos(), torch.sinc(half / torch.pi) / 2 * vectors], dim=-1)


def pass_straight(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` f32[n, d], whose gradient goes to `latents` as it is (Bengio et al., 2013)."""
    return latents + (quantized - latents).detach()


def pass_turned(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` f32[n, d], whose gradient goes to `latents` turned and stretched as they were
    (Fifty et al., 2024).
    """
    length, target = (x.norm(dim=1, keepdim=True).clamp(min=1e-6) for x in (latents.detach(), quantized))
    one, other = latents.detach() / length, quantized / target
    middle = torch.nn.functional.normalize(one + other, dim=1)
    turned = (
        latents
        - 2 * (latents * middle).sum(1, keepdim=True) * middle
        + 2 * (latents * one).sum(1, keepdim=True) * other
    )
    return turned * (target / length)
