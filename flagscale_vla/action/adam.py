"""Adam (Kingma and Ba, 2015) on named tensors, whose whole state is tensors too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BETAS = (0.9, 0.99)
EPSILON = 1e-8
LARGEST_NORM = 1.0
"""Gradients are scaled down to this norm."""


class Adam:
    """Moves parameters in place. Steps count from 0 and are the caller's to count.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], *, lr: float, step: int) -> None:
        """Move every parameter by its gradient."""
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        shrink = (LARGEST_NORM / norm.clamp(min=1e-12)).clamp(max=1.0)
        corrections = [1 - beta ** (step + 1) for beta in BETAS]
        for name, parameter in self.parameters.items():
            gradient = gradients[name] * shrink
            self.first[name].lerp_(gradient, 1 - BETAS[0])
            self.second[name].lerp_(gradient.square(), 1 - BETAS[1])
            spread = (self.second[name] / corrections[1]).sqrt() + EPSILON
            parameter.sub_(lr / corrections[0] * self.first[name] / spread)

    def state(self) -> dict[str, Tensor]:
        """The moments, not copied."""
        first = {f"first.{name}": moment for name, moment in self.first.items()}
        return first | {f"second.{name}": moment for name, moment in self.second.items()}
