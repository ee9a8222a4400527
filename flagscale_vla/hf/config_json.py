"""A `config.json` that `transformers` makes a model of these sizes of.

Qwen's is flat, as the hub's files are: every version of `transformers` that knows the family reads that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale_vla.config.model import PATCH_FRAMES, PATCH_MERGE, PATCH_PIXELS, ModelConfig, VisionConfig, VisionKind
from flagscale_vla.hf.config_section import Section
from flagscale_vla.hf.configs import kind_of

TOKENS = ("image_token_id", "bos_token_id", "eos_token_id")
QWEN_TOKENS = (*TOKENS, "video_token_id", "vision_start_token_id", "vision_end_token_id")


def token_keys(kind: VisionKind) -> tuple[str, ...]:
    """Keys under which a `config.json` of this kind keeps token ids."""
    return TOKENS if kind is VisionKind.internvit else QWEN_TOKENS


def tokens_of(config: Mapping[str, Any]) -> dict[str, int]:
    """The token ids in a `config.json`, by key, wherever in it they stand; a key that it lacks is left out."""
    top = Section("", config)
    places = [top, top.section("text_config")] if "text_config" in config else [top]
    keys = token_keys(kind_of(top))
    return {key: place.integer(key) for key in keys for place in places if place.values.get(key) is not None}


def config_of(model: ModelConfig, tokens: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """A `config.json` that `transformers` makes this model of; the flow head is left out.

    Args:
        model: its sizes.
        tokens: token ids, by `config.json`'s key: at least those that `token_keys` names.
        dtype: of the weights, as torch names it: `bfloat16`.

    Raises:
        ValueError: naming the token ids that are missing.
    """
    kind = model.vision.kind
    missing = [key for key in token_keys(kind) if key not in tokens]
    if missing:
        raise ValueError(f"config.json of a {kind.value} model needs the token ids {', '.join(missing)}")
    ids = {key: tokens[key] for key in token_keys(kind)}
    return _intern(model, ids, dtype) if kind is VisionKind.internvit else _qwen(model, ids, dtype)


def _text(model: ModelConfig) -> dict[str, Any]:
    language = model.language
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": language.hidden,
        "intermediate_size": language.intermediate,
        "max_position_embeddings": language.max_positions,
        "num_attention_heads": language.heads,
        "num_hidden_layers": language.layers,
        "num_key_value_heads": language.kv_heads,
        "rms_norm_eps": language.norm_eps,
        "rope_theta": language.rope_theta,
        "use_sliding_window": False,
        "vocab_size": language.vocab,
    }


def _qwen(model: ModelConfig, ids: dict[str, int], dtype: str) -> dict[str, Any]:
    older = model.vision.kind is VisionKind.qwen2_vl
    vision = _qwen2_vision(model) if older else _qwen2_5_vision(model)
    return {
        "architectures": ["Qwen2VLForConditionalGeneration" if older else "Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_vl" if older else "qwen2_5_vl",
        **_text(model),
        "rope_scaling": {"type": "mrope", "mrope_section": list(model.language.mrope_sections)},
        "tie_word_embeddings": model.language.tied,
        "torch_dtype": dtype,
        **ids,
        "vision_config": {
            "depth": model.vision.layers,
            "num_heads": model.vision.heads,
            "in_channels": 3,
            "patch_size": PATCH_PIXELS,
            "spatial_merge_size": PATCH_MERGE,
            "temporal_patch_size": PATCH_FRAMES,
            **vision,
        },
    }


def _qwen2_5_vision(model: ModelConfig) -> dict[str, Any]:
    vision = model.vision
    return {
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "hidden_size": vision.hidden,
        "intermediate_size": vision.intermediate,
        "out_hidden_size": model.language.hidden,
        "window_size": vision.window_pixels,
        "fullatt_block_indexes": list(vision.full_attention_layers),
        # For videos alone, which are not trained on here; the public models' value.
        "tokens_per_second": 2,
    }


def _qwen2_vision(model: ModelConfig) -> dict[str, Any]:
    vision = model.vision
    return {
        "model_type": "qwen2_vl",
        "hidden_act": "quick_gelu",
        "embed_dim": vision.hidden,
        "hidden_size": model.language.hidden,
        "mlp_ratio": vision.intermediate // vision.hidden,
    }


def _intern(model: ModelConfig, ids: dict[str, int], dtype: str) -> dict[str, Any]:
    tied = model.language.tied
    ends = {key: ids[key] for key in ("bos_token_id", "eos_token_id")}
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 1 / PATCH_MERGE,
        "image_seq_length": (model.vision.tile_side // PATCH_MERGE) ** 2,
        "image_token_id": ids["image_token_id"],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": {"model_type": "qwen2", **_text(model), **ends, "tie_word_embeddings": tied},
        "vision_config": _intern_vision(model.vision),
    }


def _intern_vision(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "internvl_vision",
        "attention_bias": True,
        "hidden_act": "gelu",
        "hidden_size": vision.hidden,
        "image_size": [vision.image_pixels, vision.image_pixels],
        "intermediate_size": vision.intermediate,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "num_hidden_layers": vision.layers,
        "patch_size": [PATCH_PIXELS, PATCH_PIXELS],
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    }
