"""How many parameters a model has, by part, from its sizes alone."""

from __future__ import annotations

from flagscale_vla.config.model import PATCH_MERGE, PATCH_WIDTH, FlowConfig, LanguageConfig, ModelConfig, VisionConfig


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
    attention = _linear(hidden, 3 * hidden) + _linear(hidden, hidden)
    layer = 2 * hidden + attention + 2 * _linear(hidden, inner) + _linear(inner, hidden)
    return _linear(PATCH_WIDTH, hidden, bias=False) + vision.layers * layer


def _merger(vision: VisionConfig, hidden: int) -> int:
    width = vision.hidden * PATCH_MERGE**2
    return vision.hidden + _linear(width, width) + _linear(width, hidden)


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
