"""Qwen2.5-VL's and Qwen2-VL's vision towers (Qwen2.5-VL report, section 2.1.1), sharded over the tensor ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagscale_vla.config.model import PATCH_WIDTH, ModelConfig
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.mcore.megatron import MegatronModule, TransformerConfig, column_linear, row_linear
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.transformer import run_block
from flagscale_vla.mcore.vision_layers import vision_encoder, vision_norm, vision_settings
from flagscale_vla.model.patches import GROUP, plan_patches
from flagscale_vla.model.pixels import normalize

ROTARY_THETA = 10000.0


class PatchMerger(MegatronModule):
    """Norm, then four neighbouring patches made into one language token by a two-layer MLP."""

    def __init__(
        self, config: TransformerConfig, outputs: int, norm: Callable[..., nn.Module], platform: Platform
    ) -> None:
        super().__init__(config=config)
        width = config.hidden_size * GROUP
        self.norm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
        self.linear_fc1 = column_linear(platform.layers, config, width, width)
        self.linear_fc2 = row_linear(platform.layers, config, width, outputs)

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens [P/4, H] from patches [P, vision hidden]."""
        groups = self.norm(patches).reshape(-1, 1, patches.shape[-1] * GROUP)
        hidden, _ = self.linear_fc1(groups)
        tokens, _ = self.linear_fc2(F.gelu(hidden))
        return tokens.squeeze(1)


class VisionTower(MegatronModule):
    """Patches of packed images to language tokens."""

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, platform: Platform) -> None:
        vision = model.vision
        config = vision_settings(vision, parallel, platform)
        super().__init__(config=config)
        self.kind, self.window_pixels = vision.kind, vision.window_pixels
        self.head_dim = vision.hidden // vision.heads
        self.patch_embed = nn.Linear(PATCH_WIDTH, vision.hidden, bias=False, dtype=platform.dtype)
        self.blocks = vision_encoder(config, vision, platform.layers)
        self.merger = PatchMerger(config, model.language.hidden, vision_norm(vision, platform.layers), platform)

    def forward(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """Tokens [P/4, H] in image order.

        Args:
            pixels: u8[P, 1176] patches in merge order.
            grid: i64[I, 3] on the CPU, patches of each image along (time, height, width).
        """
        plan = plan_patches(tuple(map(tuple, grid.tolist())), self.window_pixels)
        hidden = self.patch_embed(normalize(pixels, self.kind).to(self.patch_embed.weight.dtype))
        order = plan.window_order.to(hidden.device)
        hidden = hidden.reshape(-1, GROUP, hidden.shape[-1])[order].reshape(-1, 1, hidden.shape[-1])
        angles = self._angles(plan.positions.to(hidden.device))
        hidden = run_block(self.blocks, hidden, plan.bounds, angles)
        return self.merger(hidden.squeeze(1)).index_select(0, plan.restore.to(hidden.device))

    def _angles(self, positions: Tensor) -> Tensor:
        """Rotary angles f32[P, head_dim / 2]: one half of the pairs turns with the row, the other with the column."""
        half = self.head_dim // 2
        exponent = torch.arange(0, half, 2, dtype=torch.float32, device=positions.device) / half
        frequencies = 1.0 / ROTARY_THETA**exponent
        return (positions[..., None].float() * frequencies).flatten(1)
