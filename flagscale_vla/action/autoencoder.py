"""Between control points and latents: a linear map, which begins as principal components, and what an MLP adds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flagscale_vla.config.tokenizer import KindConfig


class Mlp(nn.Module):
    """Two hidden layers, the second a residual; what it gives is zero at first."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """f32[n, outputs] of f32[n, inputs]."""
        h = F.gelu(self.first(x), approximate="tanh")
        h = h + F.gelu(self.second(h), approximate="tanh")
        out: Tensor = self.last(h)
        return out

    def start(self, generator: torch.Generator) -> None:
        """Draw the weights: normal, with the inverse of the inputs' number as variance."""
        for layer in (self.first, self.second):
            layer.weight.data.normal_(0.0, layer.in_features**-0.5, generator=generator)
            layer.bias.data.zero_()
        self.last.weight.data.zero_()
        self.last.bias.data.zero_()


class Autoencoder(nn.Module):
    """Encoder and decoder of one kind of group, shared by all robots and arms.

    Args:
        config: of the kind.
        width: its slots.
    """

    def __init__(self, config: KindConfig, width: int) -> None:
        super().__init__()
        values = config.points * width
        self.into, self.out = nn.Linear(values, config.latent), nn.Linear(config.latent, values)
        self.encoder = Mlp(values, config.hidden, config.latent)
        self.decoder = Mlp(config.latent, config.hidden, values)

    def encode(self, points: Tensor) -> Tensor:
        """Latents f32[n, d] of control points f32[n, T_c * width]."""
        out: Tensor = self.into(points) + self.encoder(points)
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """Control points f32[n, T_c * width] of latents f32[n, d]."""
        out: Tensor = self.out(latents) + self.decoder(latents)
        return out

    def start(self, points: Tensor, generator: torch.Generator) -> None:
        """Begin as the principal components of f32[n, T_c * width], whose inverse the decoder is."""
        mean = points.mean(dim=0)
        centred = (points - mean).to(torch.float64)
        # Ascending, so the last are the largest.
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, : self.into.out_features]
        axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
        axes = F.pad(axes, (0, self.into.out_features - axes.shape[1])).to(torch.float32)
        self.into.weight.data.copy_(axes.T)
        self.into.bias.data.copy_(-mean @ axes)
        self.out.weight.data.copy_(axes)
        self.out.bias.data.copy_(mean)
        for mlp in (self.encoder, self.decoder):
            mlp.start(generator)
