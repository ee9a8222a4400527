"""EO-1's flow-matching head (EO-1 report, section 3): float32, replicated, split between first and last stage."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagscale_vla.config.model import FlowConfig

Linear = Callable[[int, int], nn.Module]
"""A float32 linear layer from inputs and outputs: see `LayerSet.head_linear`."""


class FlowInput(nn.Module):
    """States and noised action steps to language-model inputs; on the first stage."""

    def __init__(self, config: FlowConfig, hidden: int, linear: Linear) -> None:
        super().__init__()
        self.config = config
        self.hidden = hidden
        self.state_proj = linear(config.width, hidden)
        self.action_in_proj = linear(config.width, hidden)
        self.action_time_mlp_in = linear(2 * hidden, hidden)
        self.action_time_mlp_out = linear(hidden, hidden)

    def states(self, states: Tensor) -> Tensor:
        """One input f32[Z, hidden] for each state f32[Z, A]."""
        return self.state_proj(states)

    def actions(self, noised: Tensor, time: Tensor) -> Tensor:
        """One input f32[C, H, hidden] for each step of noised chunks f32[C, H, A] at flow times f32[C]."""
        steps = self.action_in_proj(noised)
        times = time_embedding(time, self.hidden, self.config.min_period, self.config.max_period)
        both = torch.cat([steps, times[:, None, :].expand_as(steps)], dim=-1)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))


class FlowOutput(nn.Module):
    """Hidden states to velocities; on the last stage. Linear throughout, as EO-1's default is."""

    def __init__(self, config: FlowConfig, hidden: int, linear: Linear) -> None:
        super().__init__()
        inner = [linear(hidden, hidden) for _ in range(config.output_layers - 1)]
        self.action_out_proj = nn.ModuleList([*inner, linear(hidden, config.width)])

    def forward(self, hidden: Tensor) -> Tensor:
        """Velocities f32[..., A] at hidden states [..., hidden]."""
        velocity = hidden.float()
        for layer in self.action_out_proj:
            velocity = layer(velocity)
        return velocity


def time_embedding(time: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """Sines and cosines f32[C, width] of time f32[C] at geometrically spaced periods (pi0, appendix B).

    In float32 and in EO-1's order: angles reach 1,571, so that another rounding is a difference of 1e-4, and what its
    weights were trained with is its own.
    """
    share = torch.linspace(0.0, 1.0, width // 2, device=time.device)
    periods = min_period * (max_period / min_period) ** share
    rates = 1.0 / periods * 2 * math.pi
    angles = rates * time[:, None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def noised(actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = t noise + (1 - t) actions, f32[C, H, A] (EO-1 report, equation 2)."""
    t = time[:, None, None]
    return t * noise + (1 - t) * actions
