"""Megatron-core's transformer, built from our settings in one place."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from flagscale_vla.config.model import LanguageConfig, VisionConfig
from flagscale_vla.config.parallel import ParallelConfig, Recompute, RecomputeConfig
from flagscale_vla.mcore.cpu_layers import SwiGLU
from flagscale_vla.mcore.layers import LayerSet
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.rotary import RotarySelfAttention


def language_transformer(config: LanguageConfig, parallel: ParallelConfig, platform: Platform) -> TransformerConfig:
    """Megatron-core's settings of the language model; its layers are split over the pipeline stages."""
    return _transformer(
        platform,
        num_layers=config.layers,
        hidden_size=config.hidden,
        ffn_hidden_size=config.intermediate,
        num_attention_heads=config.heads,
        num_query_groups=config.kv_heads,
        layernorm_epsilon=config.norm_eps,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual if parallel.virtual > 1 else None,
        num_layers_in_first_pipeline_stage=parallel.first_layers or None,
        # Batched messages of an interleaved schedule on two stages would reach each other's receiver.
        overlap_p2p_comm=parallel.virtual > 1,
        batch_p2p_comm=parallel.virtual == 1,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        add_bias_linear=False,
        **_recompute(parallel.language_recompute),
        **_fp8(platform),
    )


def vision_transformer(config: VisionConfig, parallel: ParallelConfig, platform: Platform) -> TransformerConfig:
    """Megatron-core's settings of the vision tower: split over tensor ranks, whole on the first stage."""
    return _transformer(
        platform,
        num_layers=config.layers,
        hidden_size=config.hidden,
        ffn_hidden_size=config.intermediate,
        num_attention_heads=config.heads,
        num_query_groups=config.heads,
        layernorm_epsilon=1e-6,
        tensor_model_parallel_size=parallel.tensor,
        add_bias_linear=True,
        **_recompute(parallel.vision_recompute),
    )


def _fp8(platform: Platform) -> dict[str, object]:
    """Megatron-core's settings of 8-bit products. Scales come from the tensor at hand: there is no state to save."""
    return {"fp8": "hybrid", "fp8_recipe": "tensorwise"} if platform.fp8 else {}


def _recompute(config: RecomputeConfig) -> dict[str, object]:
    """Megatron-core's settings of activation recompute; it takes those of `full` for no other granularity."""
    if config.granularity is Recompute.none:
        return {}
    if config.granularity is Recompute.selective:
        return {"recompute_granularity": "selective", "recompute_modules": [part.value for part in config.modules]}
    return {
        "recompute_granularity": "full",
        "recompute_method": config.method.value,
        "recompute_num_layers": config.layers,
    }


def _transformer(platform: Platform, **sizes: object) -> TransformerConfig:
    on_cpu = platform.device.type == "cpu"
    return TransformerConfig(
        **sizes,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_qkv_bias=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=platform.dtype,
        pipeline_dtype=platform.dtype,
        bf16=platform.dtype is torch.bfloat16,
        # Weights are drawn by name after the build (see mcore.initial), the same under every layout.
        perform_initialization=False,
        use_cpu_initialization=on_cpu,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=not on_cpu,
        # Megatron-core's word for "the spec names the activation", see `layer_spec`.
        use_te_activation_func=on_cpu,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        # Losses arrive divided by global counts: gradients are summed over ranks, never averaged.
        calculate_per_token_loss=True,
    )


def layer_spec(layers: LayerSet, mask: AttnMaskType, row_one_layers: frozenset[int] = frozenset()) -> ModuleSpec:
    """One pre-norm layer of attention and a gated MLP; see `PackedAttention` for `row_one_layers`."""
    attention = SelfAttentionSubmodules(
        linear_qkv=layers.column_linear,
        core_attention=partial(layers.core_attention, row_one_layers=row_one_layers),
        linear_proj=layers.row_linear,
    )
    mlp = MLPSubmodules(linear_fc1=layers.column_linear, linear_fc2=layers.row_linear, activation_func=SwiGLU)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=layers.norm,
            self_attention=ModuleSpec(
                module=RotarySelfAttention, params={"attn_mask_type": mask}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=layers.norm,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def language_block(
    config: TransformerConfig, layers: LayerSet, first: bool, last: bool, chunk: int | None
) -> TransformerBlock:
    """The language model's layers of one piece of this stage, with the final norm on the last one.

    `chunk` numbers the stage's pieces under the interleaved schedule, else it is `None`.
    """
    spec = layer_spec(layers, AttnMaskType.causal)
    count = get_num_layers_to_build(config, vp_stage=chunk)
    return TransformerBlock(
        config=config,
        spec=TransformerBlockSubmodules(layer_specs=[spec] * count, layer_norm=layers.norm),
        pre_process=first,
        post_process=last,
        vp_stage=chunk,
    )


def vision_block(config: TransformerConfig, layers: LayerSet, full_layers: frozenset[int]) -> TransformerBlock:
    """The vision tower's layers; those in `full_layers` see whole images, the others a window."""
    spec = layer_spec(layers, AttnMaskType.no_mask, full_layers)
    return TransformerBlock(
        config=config,
        spec=TransformerBlockSubmodules(layer_specs=[spec] * config.num_layers, layer_norm=None),
        post_layer_norm=False,
    )


def run_block(block: nn.Module, hidden: Tensor, bounds: Tensor, angles: Tensor) -> Tensor:
    """Run a block over packed rows.

    Args:
        hidden: [S, 1, H] (local rows under sequence parallelism).
        bounds: i32[R, N+1] borders of documents, on the CPU.
        angles: f32[S, D/2] rotary angles of each row.
    """
    return block(hidden_states=hidden, attention_mask=bounds, rotary_pos_emb=angles[:, None, None, :])
