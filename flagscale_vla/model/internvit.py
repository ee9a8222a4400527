"""InternVL's vision tower (InternVL 1.5 report, section 3.1; InternVL3 report, section 2.1), over the tensor ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.mcore.megatron import MegatronModule, TransformerConfig, column_linear, row_linear
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.vision_layers import LayerNorm, run_without_positions, vision_encoder, vision_settings
from flagscale_vla.model.patches import GROUP
from flagscale_vla.model.pixels import normalize
from flagscale_vla.model.tiles import plan_tiles

PROJECTOR_EPS = 1e-5
"""Of the projector's norm; the tower's are 1e-6."""


class TileProjector(MegatronModule):
    """Four neighbouring patches side by side (pixel shuffle), normed, made into one language token by a small MLP."""

    def __init__(self, config: TransformerConfig, outputs: int, platform: Platform) -> None:
        super().__init__(config=config)
        width = config.hidden_size * GROUP
        self.norm = LayerNorm(config=config, hidden_size=width, eps=PROJECTOR_EPS)
        self.linear_fc1 = column_linear(platform.layers, config, width, outputs)
        self.linear_fc2 = row_linear(platform.layers, config, outputs, outputs)

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens [P/4, H] from patches [P, vision hidden] in merge order."""
        groups = self.norm(patches.reshape(-1, 1, patches.shape[-1] * GROUP))
        hidden, _ = self.linear_fc1(groups)
        tokens, _ = self.linear_fc2(F.gelu(hidden))
        return tokens.squeeze(1)


class TileTower(MegatronModule):
    """Patches of packed square images of one size to language tokens."""

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, platform: Platform) -> None:
        vision, dtype = model.vision, platform.dtype
        config = vision_settings(vision, parallel, platform)
        super().__init__(config=config)
        self.side = vision.tile_side
        self.patch_embed = nn.Linear(vision.patch_width, vision.hidden, dtype=dtype)
        self.class_token = nn.Parameter(torch.zeros(vision.hidden, dtype=dtype))
        self.position_embedding = nn.Parameter(torch.zeros(1 + self.side**2, vision.hidden, dtype=dtype))
        self.blocks = vision_encoder(config, vision, platform.layers)
        self.merger = TileProjector(config, model.language.hidden, platform)

    def forward(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """Tokens [P/4, H] in image order.

        Args:
            pixels: u8[P, 588] patches in merge order.
            grid: i64[I, 3] on the CPU, patches of each image along (time, height, width).

        Raises:
            ValueError: where an image is not of the size that there are positions for.
        """
        plan = plan_tiles(tuple(map(tuple, grid.tolist())), self.side)
        hidden = self.patch_embed(normalize(pixels, VisionKind.internvit).to(self.patch_embed.weight.dtype))
        hidden = hidden + F.embedding(plan.places.to(hidden.device), self.position_embedding)
        first = self.class_token + self.position_embedding[0]
        rows = torch.cat([first[None], hidden]).index_select(0, plan.rows.to(hidden.device))
        rows = run_without_positions(self.blocks, rows.unsqueeze(1), plan.bounds).squeeze(1)
        return self.merger(rows.index_select(0, plan.patches.to(hidden.device)))
