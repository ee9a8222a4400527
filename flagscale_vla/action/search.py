"""Choosing codes with an eye on where the errors of steps lead.

Actions that are steps add up: errors that cancel out leave the robot where it was to be, errors that keep their sign
lead it astray, in this chunk and, by what is left at its end, in those that follow. So what errors have added up to
counts beside them, at each step of the chunk and through as many steps behind it. A chunk of any rate counts as one
with as many steps as its spline has control points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev

from flagscale_vla.action.autoencoder import Autoencoder
from flagscale_vla.action.groups import from_points, to_points
from flagscale_vla.action.quantizer import ResidualQuantizer
from flagscale_vla.config.tokenizer import KindConfig, OmniSatConfig

PIECE = 128
"""Groups whose strings are compared at once."""


class Search:
    """Finds the strings of one kind of group, for chunks of one length.

    In latents x, distance is x^T (I + weight E E^T) x, with E how `led_astray` changes with the latent. By the root of
    that matrix it is plain distance again, so that the quantiser's own search takes no longer. Of the strings that it
    ends with, the one is taken that misses least; what a string decodes to is taken to be as far from what its latent
    decodes to as the decoder's slope says, which saves decoding them all.

    Args:
        autoencoder: of the kind.
        quantizer: of the kind.
        config: of the codec.
        entry: of the kind.
        horizon: steps H of a chunk.
        pinned: whether curves begin at zero.
        weight: of what errors add up to, beside the errors; 0 for groups that are no steps.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        quantizer: ResidualQuantizer,
        config: OmniSatConfig,
        entry: KindConfig,
        *,
        horizon: int,
        pinned: bool,
        weight: float,
    ) -> None:
        self.autoencoder, self.quantizer, self.config, self.entry = autoencoder, quantizer, config, entry
        self.pinned = pinned
        steps = slope(autoencoder, entry, horizon, pinned)
        self.slope = steps.transpose(1, 2).flatten(1)
        self.misses = root_of_misses(horizon, weight * entry.points)
        moved = entry.points * led_astray(steps.to(torch.float64)).flatten(1)
        metric = torch.eye(entry.latent, dtype=torch.float64) + weight * moved @ moved.T
        self.root = torch.linalg.cholesky(metric).to(torch.float32)
        self.seeker = ResidualQuantizer(quantizer.books @ self.root)

    def find(self, filled: Tensor, low: Tensor, high: Tensor, layers: int) -> Tensor:
        """Codes i64[n, layers] of groups f32[n, H, w] in a range f32[n or 1, 1, w]."""
        pinned = torch.full((len(filled),), self.pinned)
        latents = self.autoencoder.encode(to_points(filled, self.entry, self.config.ridge, pinned))
        strings = self.seeker.candidates(latents @ self.root, layers, self.config.beam, self.config.endings)
        if strings.shape[1] == 1:
            return strings[:, 0]
        rows = (each.expand(len(filled), -1, -1).transpose(1, 2) for each in (filled, low, high))
        pieces = zip(*(each.split(PIECE) for each in (strings, latents, *rows)), strict=True)
        return torch.cat([self._choose(*piece) for piece in pieces])

    def _choose(self, strings: Tensor, latents: Tensor, wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Of strings i64[n, m, L] those i64[n, L] that miss f32[n, w, H] least."""
        count, ways, _ = strings.shape
        pinned = torch.full((count,), self.pinned)
        exact = from_points(self.autoencoder.decode(latents), self.entry, wanted.shape[2], pinned).transpose(1, 2)
        away = self.quantizer.decode(strings.flatten(0, 1)) - latents.repeat_interleave(ways, dim=0)
        decoded = (away @ self.slope).view(count, ways, *wanted.shape[1:]) + exact[:, None]
        misses = miss(decoded, wanted[:, None], low[:, None], high[:, None], self.misses)
        return strings[torch.arange(count), misses.argmin(dim=1)]


def slope(autoencoder: Autoencoder, entry: KindConfig, horizon: int, pinned: bool) -> Tensor:
    """How the steps of a chunk change with its latent, f32[d, H, w], at the latent of the mean chunk, which is zero."""

    def decode(latent: Tensor) -> Tensor:
        return from_points(autoencoder.decode(latent[None]), entry, horizon, torch.tensor([pinned]))[0]

    return jacrev(decode)(torch.zeros(entry.latent)).detach().permute(2, 0, 1).contiguous()


def led_astray(errors: Tensor) -> Tensor:
    """f32[..., H + 1, w], whose squares add up to the mean, over the H steps of a chunk and H more, of the square of
    what errors f32[..., H, w] have added up to by then, per step of the chunk.
    """
    horizon = errors.shape[-2]
    sums = errors.cumsum(dim=-2) / horizon
    return torch.cat([sums / horizon**0.5, sums[..., -1:, :]], dim=-2) / 2**0.5


def root_of_misses(horizon: int, weight: float) -> Tensor:
    """f32[H, H], by which errors f32[..., H] are multiplied so that their squares add up to the mean of their squares,
    and `weight` times that of what they add up to.
    """
    moved = led_astray(torch.eye(horizon, dtype=torch.float64)[..., None]).flatten(1)
    squares = torch.eye(horizon, dtype=torch.float64) / horizon + weight * moved @ moved.T
    return torch.linalg.cholesky(squares).to(torch.float32)


def miss(decoded: Tensor, wanted: Tensor, low: Tensor, high: Tensor, root: Tensor) -> Tensor:
    """What decoded groups are wrong by, f32[...], of f32[..., w, H] once brought into [low, high], with the root f32[H,
    H] of what errors count.
    """
    away = torch.minimum(torch.maximum(decoded, low), high) - wanted
    return (away @ root).square().sum(dim=(-2, -1))
