"""How many parameters a model has, by part, from its sizes alone."""

from __future__ import annotations

from flagscale_vla.config.model import PATCH_MERGE, FlowConfig, LanguageConfig, ModelConfig, VisionConfig, VisionKind


def count_parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters of vision, merger, language and head. Tied embeddings count once."""
    hidden = model.language.hidden
    return {
        "vision": _vision(model.vision),
        "merger": _merger(model.vision, hidden),
        "language": _language(model.language),
        "head": _head(model.flow, hidden),
    }


def _linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _vision(vision: VisionConfig) -> int:
    hidden, inner = vision.hidden, vision.intermediate
    gated, intern = vision.kind is VisionKind.qwen2_5_vl, vision.kind is VisionKind.internvit
    attention = _linear(hidden, 3 * hidden) + _linear(hidden, hidden)
    mlp = (2 if gated else 1) * _linear(hidden, inner) + _linear(inner, hidden)
    scales = 2 * hidden if intern else 0
    # InternViT has a class token, and a position for it and for every patch.
    places = (2 + vision.tile_side**2) * hidden if intern else 0
    layer = 2 * _norm(vision, hidden) + attention + mlp + scales
    return _linear(vision.patch_width, hidden, bias=intern) + places + vision.layers * layer


def _merger(vision: VisionConfig, hidden: int) -> int:
    width = vision.hidden * PATCH_MERGE**2
    if vision.kind is VisionKind.internvit:
        return _norm(vision, width) + _linear(width, hidden) + _linear(hidden, hidden)
    return _norm(vision, vision.hidden) + _linear(width, width) + _linear(width, hidden)


def _norm(vision: VisionConfig, width: int) -> int:
    return width if vision.kind is VisionKind.qwen2_5_vl else 2 * width


def _language(language: LanguageConfig) -> int:
    hidden, inner = language.hidden, language.intermediate
    keys = language.kv_heads * language.head_dim
    attention = _linear(hidden, hidden + 2 * keys) + _linear(hidden, hidden, bias=False)
    layer = 2 * hidden + attention + 3 * _linear(hidden, inner, bias=False)
    embeddings = language.vocab * hidden * (1 if language.tied else 2)
    return embeddings + language.layers * layer + hidden


def _head(flow: FlowConfig, hidden: int) -> int:
    inputs = 2 * _linear(flow.width, hidden) + _linear(2 * hidden, hidden) + _linear(hidden, hidden)
    return inputs + (flow.output_layers - 1) * _linear(hidden, hidden) + _linear(hidden, flow.width)
