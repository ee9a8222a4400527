"""The name table's rows of InternVL's vision tower and projector."""

from __future__ import annotations

from flagscale_vla.config.model import PATCH_MERGE, PATCH_PIXELS, ModelConfig, VisionConfig
from flagscale_vla.hf.forms import Grouped, Reshaped, Row, Same, linear, norm
from flagscale_vla.hf.qwen import plain_mlp


def intern_rows(model: ModelConfig) -> list[Row]:
    """Every tensor of the vision tower and the projector."""
    vision, theirs = model.vision, "model.vision_tower"
    rows = _embedding(vision, "vision", f"{theirs}.embeddings")
    for layer in range(vision.layers):
        rows += _layer(vision, f"vision.blocks.layers.{layer}", f"{theirs}.encoder.layer.{layer}")
    return rows + _projector(model, "vision.merger", "model.multi_modal_projector")


def _embedding(vision: VisionConfig, ours: str, theirs: str) -> list[Row]:
    hidden, positions = vision.hidden, 1 + vision.tile_side**2
    patch = Reshaped((hidden, vision.patch_width), (hidden, 3, PATCH_PIXELS, PATCH_PIXELS))
    first = Reshaped((hidden,), (1, 1, hidden))
    place = Reshaped((positions, hidden), (1, positions, hidden))
    projection = f"{theirs}.patch_embeddings.projection"
    return [
        Row(f"{ours}.patch_embed.weight", (f"{projection}.weight",), patch, patch.inner),
        Row(f"{ours}.patch_embed.bias", (f"{projection}.bias",), Same(), (hidden,)),
        Row(f"{ours}.class_token", (f"{theirs}.cls_token",), first, first.inner),
        Row(f"{ours}.position_embedding", (f"{theirs}.position_embeddings",), place, place.inner),
    ]


def _layer(vision: VisionConfig, ours: str, theirs: str) -> list[Row]:
    hidden, attention = vision.hidden, f"{theirs}.attention"
    qkv = Grouped(vision.heads, vision.heads, hidden // vision.heads, fused=False)
    parts = tuple(f"{attention}.{part}_proj" for part in "qkv")
    project = (f"{attention}.projection_layer",)
    return [
        *norm(f"{ours}.input_layernorm", f"{theirs}.layernorm_before", hidden, bias=True),
        *linear(f"{ours}.self_attention.linear_qkv", parts, qkv, (qkv.rows, hidden), bias=True),
        *linear(f"{ours}.self_attention.linear_proj", project, Same(), (hidden, hidden), bias=True),
        Row(f"{ours}.self_attn_bda.scale", (f"{theirs}.lambda_1",), Same(), (hidden,)),
        *norm(f"{ours}.pre_mlp_layernorm", f"{theirs}.layernorm_after", hidden, bias=True),
        *plain_mlp(vision, f"{ours}.mlp", f"{theirs}.mlp"),
        Row(f"{ours}.mlp_bda.scale", (f"{theirs}.lambda_2",), Same(), (hidden,)),
    ]


def _projector(model: ModelConfig, ours: str, theirs: str) -> list[Row]:
    width, outputs = model.vision.hidden * PATCH_MERGE**2, model.language.hidden
    return [
        *norm(f"{ours}.norm", f"{theirs}.layer_norm", width, bias=True),
        *linear(f"{ours}.linear_fc1", (f"{theirs}.linear_1",), Same(), (outputs, width), bias=True),
        *linear(f"{ours}.linear_fc2", (f"{theirs}.linear_2",), Same(), (outputs, outputs), bias=True),
    ]
