"""The name table's rows of Qwen's language model, which InternVL has too, and of Qwen's vision towers."""

from __future__ import annotations

from flagscale_vla.config.model import (
    PATCH_FRAMES,
    PATCH_MERGE,
    PATCH_PIXELS,
    PATCH_WIDTH,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
    VisionKind,
)
from flagscale_vla.hf.forms import Grouped, Reshaped, Row, Same, Stacked, linear, norm


def language_rows(model: LanguageConfig) -> list[Row]:
    """Every tensor of the language model; a tied output layer is none."""
    ours, theirs = "language", "model.language_model"
    embedding = (model.vocab, model.hidden)
    rows = [Row(f"{ours}.embedding.word_embeddings.weight", (f"{theirs}.embed_tokens.weight",), Same(), embedding)]
    for layer in range(model.layers):
        rows += _language_layer(model, f"{ours}.decoder.layers.{layer}", f"{theirs}.layers.{layer}")
    rows += norm(f"{ours}.decoder.final_layernorm", f"{theirs}.norm", model.hidden, bias=False)
    if not model.tied:
        rows.append(Row(f"{ours}.output_layer.weight", ("lm_head.weight",), Same(), embedding))
    return rows


def _language_layer(model: LanguageConfig, ours: str, theirs: str) -> list[Row]:
    hidden, inner = model.hidden, model.intermediate
    qkv = Grouped(model.heads, model.kv_heads, model.head_dim, fused=False)
    parts = tuple(f"{theirs}.self_attn.{part}_proj" for part in "qkv")
    gate_up = tuple(f"{theirs}.mlp.{part}_proj" for part in ("gate", "up"))
    return [
        *norm(f"{ours}.input_layernorm", f"{theirs}.input_layernorm", hidden, bias=False),
        *linear(f"{ours}.self_attention.linear_qkv", parts, qkv, (qkv.rows, hidden), bias=True),
        *linear(
            f"{ours}.self_attention.linear_proj", (f"{theirs}.self_attn.o_proj",), Same(), (hidden, hidden), bias=False
        ),
        *norm(f"{ours}.pre_mlp_layernorm", f"{theirs}.post_attention_layernorm", hidden, bias=False),
        *linear(f"{ours}.mlp.linear_fc1", gate_up, Stacked(2), (2 * inner, hidden), bias=False),
        *linear(f"{ours}.mlp.linear_fc2", (f"{theirs}.mlp.down_proj",), Same(), (hidden, inner), bias=False),
    ]


def vision_rows(model: ModelConfig) -> list[Row]:
    """Every tensor of Qwen2.5-VL's or Qwen2-VL's vision tower and its merger."""
    vision, ours, theirs = model.vision, "vision", "model.visual"
    bias = vision.kind is VisionKind.qwen2_vl
    patch = (vision.hidden, 3, PATCH_FRAMES, PATCH_PIXELS, PATCH_PIXELS)
    flat = Reshaped((vision.hidden, PATCH_WIDTH), patch)
    rows = [Row(f"{ours}.patch_embed.weight", (f"{theirs}.patch_embed.proj.weight",), flat, flat.inner)]
    for layer in range(vision.layers):
        rows += _vision_layer(vision, f"{ours}.blocks.layers.{layer}", f"{theirs}.blocks.{layer}")
    width = vision.hidden * PATCH_MERGE**2
    return [
        *rows,
        *norm(f"{ours}.merger.norm", f"{theirs}.merger.ln_q", vision.hidden, bias=bias),
        *linear(f"{ours}.merger.linear_fc1", (f"{theirs}.merger.mlp.0",), Same(), (width, width), bias=True),
        *linear(
            f"{ours}.merger.linear_fc2", (f"{theirs}.merger.mlp.2",), Same(), (model.language.hidden, width), bias=True
        ),
    ]


def _vision_layer(vision: VisionConfig, ours: str, theirs: str) -> list[Row]:
    hidden, older = vision.hidden, vision.kind is VisionKind.qwen2_vl
    qkv = Grouped(vision.heads, vision.heads, hidden // vision.heads, fused=True)
    mlp = plain_mlp if older else _gated_mlp
    return [
        *norm(f"{ours}.input_layernorm", f"{theirs}.norm1", hidden, bias=older),
        *linear(f"{ours}.self_attention.linear_qkv", (f"{theirs}.attn.qkv",), qkv, (qkv.rows, hidden), bias=True),
        *linear(f"{ours}.self_attention.linear_proj", (f"{theirs}.attn.proj",), Same(), (hidden, hidden), bias=True),
        *norm(f"{ours}.pre_mlp_layernorm", f"{theirs}.norm2", hidden, bias=older),
        *mlp(vision, f"{ours}.mlp", f"{theirs}.mlp"),
    ]


def _gated_mlp(vision: VisionConfig, ours: str, theirs: str) -> list[Row]:
    hidden, inner = vision.hidden, vision.intermediate
    gate_up = (f"{theirs}.gate_proj", f"{theirs}.up_proj")
    return [
        *linear(f"{ours}.linear_fc1", gate_up, Stacked(2), (2 * inner, hidden), bias=True),
        *linear(f"{ours}.linear_fc2", (f"{theirs}.down_proj",), Same(), (hidden, inner), bias=True),
    ]


def plain_mlp(vision: VisionConfig, ours: str, theirs: str) -> list[Row]:
    """Two linear layers, as in Qwen2-VL's and InternVL's towers."""
    hidden, inner = vision.hidden, vision.intermediate
    return [
        *linear(f"{ours}.linear_fc1", (f"{theirs}.fc1",), Same(), (inner, hidden), bias=True),
        *linear(f"{ours}.linear_fc2", (f"{theirs}.fc2",), Same(), (hidden, inner), bias=True),
    ]
