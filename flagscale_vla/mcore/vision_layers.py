"""What the towers of Qwen2-VL and InternVL have and Qwen2.5-VL's has not: layer norms, a plain MLP, layer scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from torch import Tensor, nn

from flagscale_vla.config.model import VisionConfig, VisionKind
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.mcore.layers import LayerSet
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.transformer import layer_spec, vision_block, vision_transformer

LAYER_SCALE = 0.1
"""What InternViT's layer scales start from (Touvron et al. 2021, section 3, for the method)."""

Residual = tuple[Tensor, Tensor | None]
"""a sub-layer's output and the bias yet to be added"""


class LayerNorm(nn.Module):
    """Layer norm over the last axis (Ba et al. 2016), in float32, on every platform."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Norm of x [..., hidden], in the dtype of x."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), weight.shape, weight, bias, self.eps).to(x.dtype)


class QuickGelu(MegatronModule):
    """x times the logistic function of 1.702 x (Hendrycks and Gimpel 2016, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Activations of x, of the same shape."""
        return x * torch.sigmoid(1.702 * x)


class Gelu(MegatronModule):
    """x times the normal distribution's function of x, exact (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Activations of x, of the same shape."""
        return F.gelu(x)


class LayerScale(MegatronModule):
    """A weight for each channel of a sub-layer's output, before it is added to the residual.

    It stands in the place of Megatron-core's bias-dropout-add, and is called as that is.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config=config)
        self.scale = nn.Parameter(torch.full((config.hidden_size,), LAYER_SCALE, dtype=config.params_dtype))

    def forward(self, training: bool, fused: bool) -> Callable[[Residual, Tensor, float], Tensor]:
        """The function that scales and adds; nothing drops out, in training or not."""
        return self._add

    def _add(self, output: Residual, residual: Tensor, dropout: float) -> Tensor:
        values, bias = output
        return residual + self.scale * (values if bias is None else values + bias)


def vision_norm(vision: VisionConfig, layers: LayerSet) -> Callable[..., nn.Module]:
    """The norm of a tower and its merger."""
    return layers.norm if vision.kind is VisionKind.qwen2_5_vl else LayerNorm


def vision_settings(vision: VisionConfig, parallel: ParallelConfig, platform: Platform) -> TransformerConfig:
    """Megatron-core's settings of a tower of any kind."""
    settings = vision_transformer(vision, parallel, platform)
    if vision.kind is VisionKind.qwen2_5_vl:
        return settings
    # The spec names norm and activation; Megatron-core's fused GELU is the tanh approximation.
    return replace(settings, gated_linear_unit=False, use_te_activation_func=True, bias_activation_fusion=False)


def vision_encoder(config: TransformerConfig, vision: VisionConfig, layers: LayerSet) -> TransformerBlock:
    """A tower's layers, of any kind."""
    if vision.kind is VisionKind.qwen2_5_vl:
        return vision_block(config, layers, frozenset(vision.full_attention_layers))
    intern = vision.kind is VisionKind.internvit
    spec = _intern_layer(config, layers) if intern else _plain_layer(layers, QuickGelu)
    return TransformerBlock(
        config=config,
        spec=TransformerBlockSubmodules(layer_specs=[spec] * config.num_layers, layer_norm=None),
        post_layer_norm=False,
    )


def _plain_layer(layers: LayerSet, activation: type[MegatronModule]) -> ModuleSpec:
    """The usual layer with layer norms and an MLP that is not gated."""
    spec = layer_spec(layers, AttnMaskType.no_mask)
    mlp = MLPSubmodules(linear_fc1=layers.column_linear, linear_fc2=layers.row_linear, activation_func=activation)
    parts = replace(
        spec.submodules,
        input_layernorm=LayerNorm,
        pre_mlp_layernorm=LayerNorm,
        mlp=ModuleSpec(module=MLP, submodules=mlp),
    )
    return replace(spec, submodules=parts)


def _intern_layer(config: TransformerConfig, layers: LayerSet) -> ModuleSpec:
    """InternViT's: no rotary positions, and a layer scale."""
    spec = _plain_layer(layers, Gelu)
    scale = ModuleSpec(module=LayerScale, params={"config": config})
    attention = replace(spec.submodules.self_attention, module=SelfAttention)
    return replace(
        spec, submodules=replace(spec.submodules, self_attention=attention, self_attn_bda=scale, mlp_bda=scale)
    )


def run_without_positions(block: nn.Module, hidden: Tensor, bounds: Tensor) -> Tensor:
    """Run a tower without rotary positions over packed rows.

    Args:
        block: as `vision_encoder` makes it for InternViT.
        hidden: [S, 1, H].
        bounds: i32[1, N+1] borders of images, on the CPU.
    """
    return block(hidden_states=hidden, attention_mask=bounds)
