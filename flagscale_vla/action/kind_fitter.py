"""One kind of group as it learns: its networks, its codebooks, and what a batch does to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagscale_vla.action.adam import Adam
from flagscale_vla.action.autoencoder import Autoencoder
from flagscale_vla.action.batch import Group
from flagscale_vla.action.groups import from_points, to_points
from flagscale_vla.action.keys import SumRanks, mix, uniform
from flagscale_vla.action.losses import STEPPED, distance, drift, geodesic, pass_straight, pass_turned
from flagscale_vla.action.quantizer import Averages, ResidualQuantizer
from flagscale_vla.config.tokenizer import KindConfig, OmniSatConfig
from flagscale_vla.robots.layout import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a rank's share of a batch asks for; each tensor is to be summed over ranks."""

    gradients: dict[str, Tensor]
    added: Tensor
    """f32[L, K, d + 2], see `Averages.tally`"""
    figures: Tensor
    """f32[2]: the error and the commitment"""
    latents: Tensor
    """f32[n, d] of this rank's plain chunks, as `chosen` and `keys`, for the drawing of codes"""
    chosen: Tensor
    keys: Tensor


class KindFitter:
    """Networks, codebooks and optimizer of one kind.

    Args:
        kind: of the group.
        config: the codec's settings.
        entry: those of the kind.
    """

    def __init__(self, kind: Kind, config: OmniSatConfig, entry: KindConfig) -> None:
        self.kind, self.config, self.entry = kind, config, entry
        self.autoencoder = Autoencoder(entry, kind.width)
        self.quantizer = ResidualQuantizer(torch.zeros(entry.layers, entry.codes, entry.latent))
        self.averages = Averages(self.quantizer, config.decay)
        self.adam = Adam(dict(self.autoencoder.named_parameters()))

    @torch.no_grad()
    def begin(self, group: Group, seed: int) -> None:
        """Principal components of the control points, and codebooks by k-means on what they give."""
        points = to_points(group.values, self.entry, self.config.ridge, group.pinned)
        generator = torch.Generator().manual_seed(seed)
        self.autoencoder.start(points, generator)
        latents = self.autoencoder.encode(points)
        self.averages.begin(latents, group.chunk_weights, rounds=self.config.kmeans_rounds, seed=seed)

    def learn(self, group: Group, totals: Tensor, seed: int, step: int) -> Outcome:
        """What this rank's share of a batch asks for. Nothing is changed.

        Args:
            group: the share.
            totals: f32[2] sums over all ranks of `weights` and of `chunk_weights`.
            seed: of the run.
            step: from 0.
        """
        weight, chunk_weight = totals.clamp(min=1e-12)
        latents = self.autoencoder.encode(to_points(group.values, self.entry, self.config.ridge, group.pinned))
        with torch.no_grad():
            codes = self.quantizer.encode(latents, self.entry.layers)
            chosen = self.quantizer.chosen(codes)
            keys = mix(group.keys, seed, step)
            prefix = self._prefix(chosen, keys)
            added = self.averages.tally(latents, codes, chosen, group.chunk_weights, group.plain)
        error = self._error(group, latents, prefix) / weight
        away = (latents - chosen.sum(dim=0)).square().mean(dim=1)
        commitment = (away * group.chunk_weights).sum() / chunk_weight
        gradients = self._gradients(error + self.config.commitment * commitment)
        figures = torch.stack([error, commitment]).detach()
        return Outcome(
            gradients=gradients,
            added=added,
            figures=figures,
            latents=latents.detach()[group.plain],
            chosen=chosen[:, group.plain],
            keys=keys[group.plain],
        )

    def _prefix(self, chosen: Tensor, keys: Tensor) -> Tensor:
        """The sum of all layers, f32[n, d], or for a share of the chunks of the first few only."""
        layers = len(chosen)
        dropped = uniform(mix(keys, 0)) < self.config.layer_dropout
        kept = torch.where(dropped, 1 + (uniform(mix(keys, 1)) * layers).to(torch.int64), layers)
        used = torch.arange(layers)[:, None] < kept
        return (chosen * used[..., None]).sum(dim=0)

    def _error(self, group: Group, latents: Tensor, quantized: Tensor) -> Tensor:
        """The weighted sum of errors in decoded chunks, f32[]."""
        through = pass_turned if self.config.rotation_trick else pass_straight
        points = self.autoencoder.decode(through(latents, quantized))
        decoded = from_points(points, self.entry, group.values.shape[1], group.pinned)
        error = (distance(decoded, group.values, group.low, group.high) * group.weights).sum()
        if self.config.drift and self.kind in STEPPED:
            astray = drift(decoded, group.values, group.low, group.high)
            error = error + self.config.drift * (astray * group.weights).sum()
        if self.config.geodesic and self.kind is Kind.rotation:
            turned, wanted = (values * group.radians + group.shift for values in (decoded, group.values))
            # In scaled units, as the error beside it.
            angles = geodesic(turned, wanted) / group.radians.mean(dim=-1)
            error = error + self.config.geodesic * (angles * group.weights.mean(dim=-1)).sum()
        return error

    def _gradients(self, loss: Tensor) -> dict[str, Tensor]:
        names, parameters = zip(*self.autoencoder.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return dict(zip(names, found, strict=True))

    def apply(self, outcome: Outcome, chunk_weight: Tensor, *, lr: float, step: int, sum_ranks: SumRanks) -> None:
        """Do what all ranks together ask for; the outcome's tensors are sums over ranks by now."""
        self.adam.step(outcome.gradients, lr=lr, step=step)
        self.averages.update(outcome.added, chunk_weight)
        if step % self.config.revive_every == 0:
            self.averages.revive(outcome.latents, outcome.chosen, outcome.keys, self.config.dead_share, sum_ranks)

    def codes_used(self) -> float:
        """The least share, over layers, of codes that are not too rare."""
        alive = ~self.averages.dead(self.config.dead_share)
        return float(alive.to(torch.float32).mean(dim=1).min())

    def state(self) -> dict[str, Tensor]:
        """Everything that a step reads or changes; not copied."""
        own = {
            "books": self.quantizer.books,
            "counts": self.averages.counts,
            "plain": self.averages.plain,
            "sums": self.averages.sums,
        }
        weights = {f"weights.{name}": value.detach() for name, value in self.autoencoder.named_parameters()}
        return own | weights | self.adam.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        # The books' own setter prepares them for encoding.
        self.quantizer.books = state["books"].clone()
