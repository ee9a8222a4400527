"""A model's sizes from Hugging Face's `config.json`: flat, as on the hub, or nested, as `transformers` 4.52 writes it.

Whatever would change the numbers and is not built here is refused by its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.model import (
    PATCH_FRAMES,
    PATCH_MERGE,
    PATCH_PIXELS,
    FlowConfig,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
    VisionKind,
)
from flagscale_vla.hf.config_section import Section

KINDS = {
    "qwen2_5_vl": VisionKind.qwen2_5_vl,
    "qwen2_vl": VisionKind.qwen2_vl,
    "internvl": VisionKind.internvit,
}
"""`model_type` to the kind of vision tower"""


VISION_DEFAULTS: dict[VisionKind, dict[str, Any]] = {
    VisionKind.qwen2_5_vl: {
        "depth": 32,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    VisionKind.qwen2_vl: {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16},
    VisionKind.internvit: {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "image_size": [448, 448],
    },
}
"""What `transformers` takes for sizes that a file leaves out, as those of its versions 4.49 to 4.51 do."""


def model_of(config: Mapping[str, Any], flow: FlowConfig, name: str) -> ModelConfig:
    """The sizes of the model that a `config.json` describes, with a flow head, which Hugging Face's has not.

    Raises:
        ValueError: naming the key, its value and what is supported.
    """
    top = Section("", config)
    top.only("quantization_config", None)
    kind = kind_of(top)
    text = top.section("text_config") if "text_config" in config else top
    try:
        language = _language(top, text, kind)
        vision = _vision(top, kind, language)
        return ModelConfig(name=name, vision=vision, language=language, flow=flow)
    except ConfigError as error:
        raise ValueError(f"config.json describes a model that cannot be: {error}") from error


def kind_of(top: Section) -> VisionKind:
    """The kind of vision tower, by the file's `model_type`.

    Raises:
        ValueError: where it is missing or not one that is built here.
    """
    if top.values.get("model_type") not in KINDS:
        raise top.refusal("model_type", f"supported: {', '.join(KINDS)}")
    return KINDS[top.values["model_type"]]


def _language(top: Section, text: Section, kind: VisionKind) -> LanguageConfig:
    text.only("hidden_act", "silu")
    text.only("use_sliding_window", False, None)
    text.only("attention_dropout", 0.0, None)
    heads, hidden = text.integer("num_attention_heads"), text.integer("hidden_size")
    text.only("head_dim", hidden // heads, None)
    if set(text.values.get("layer_types") or ()) - {"full_attention"}:
        raise text.refusal("layer_types", "supported: full_attention")
    if kind is VisionKind.internvit:
        text.must("model_type", "qwen2")
    theta, sections = _rope(text, kind, hidden // heads // 2)
    return LanguageConfig(
        layers=text.integer("num_hidden_layers"),
        hidden=hidden,
        intermediate=text.integer("intermediate_size"),
        heads=heads,
        kv_heads=text.integer("num_key_value_heads"),
        vocab=text.integer("vocab_size"),
        rope_theta=theta,
        mrope_sections=sections,
        norm_eps=text.real("rms_norm_eps"),
        max_positions=text.integer("max_position_embeddings"),
        tied=_tied(top, text, kind),
    )


def _rope(text: Section, kind: VisionKind, half: int) -> tuple[float, list[int]]:
    """Base and sections of the rotary positions, from `rope_parameters` (transformers 5) or from `rope_scaling`.

    InternVL3's files say `dynamic`, which is the plain kind up to `max_position_embeddings` tokens (bloc97 2023).
    """
    key = "rope_parameters" if text.values.get("rope_parameters") is not None else "rope_scaling"
    plain = Section(f"{text.place}{key}.", text.values.get(key) or {})
    theta = plain.real("rope_theta") if "rope_theta" in plain.values else text.real("rope_theta")
    if kind is VisionKind.internvit:
        plain.only("type", "default", "dynamic")
        plain.only("rope_type", "default", "dynamic")
        return theta, [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    plain.only("type", "default", "mrope")
    plain.only("rope_type", "default", "mrope")
    return theta, plain.integers("mrope_section")


def _tied(top: Section, text: Section, kind: VisionKind) -> bool:
    """Whether the output layer is the embedding. Files say it at the top, below, or not at all where it is not."""
    said = [bool(place.values["tie_word_embeddings"]) for place in (top, text) if "tie_word_embeddings" in place.values]
    # transformers ties Qwen where either place says so; InternVL's text section says false whatever the top says.
    return said[0] if said and kind is VisionKind.internvit else any(said)


def _vision(top: Section, kind: VisionKind, language: LanguageConfig) -> VisionConfig:
    section = top.section("vision_config").over(VISION_DEFAULTS[kind])
    if kind is VisionKind.internvit:
        return _intern_vision(top, section)
    for key, value in (("in_channels", 3), ("in_chans", 3), ("patch_size", PATCH_PIXELS)):
        section.only(key, value)
    section.only("spatial_patch_size", PATCH_PIXELS)
    section.only("spatial_merge_size", PATCH_MERGE)
    section.only("temporal_patch_size", PATCH_FRAMES)
    read = _qwen2_5_vision if kind is VisionKind.qwen2_5_vl else _qwen2_vision
    return read(section, language)


def _qwen2_5_vision(section: Section, language: LanguageConfig) -> VisionConfig:
    section.only("hidden_act", "silu")
    section.must("out_hidden_size", language.hidden)
    return VisionConfig(
        kind=VisionKind.qwen2_5_vl,
        layers=section.integer("depth"),
        hidden=section.integer("hidden_size"),
        intermediate=section.integer("intermediate_size"),
        heads=section.integer("num_heads"),
        window_pixels=section.integer("window_size"),
        full_attention_layers=section.integers("fullatt_block_indexes"),
        image_pixels=0,
    )


def _qwen2_vision(section: Section, language: LanguageConfig) -> VisionConfig:
    """Qwen2-VL's `hidden_size` is the language model's; its own is `embed_dim`."""
    section.only("hidden_act", "quick_gelu")
    section.must("hidden_size", language.hidden)
    hidden = section.integer("embed_dim")
    return VisionConfig(
        kind=VisionKind.qwen2_vl,
        layers=section.integer("depth"),
        hidden=hidden,
        intermediate=int(hidden * section.real("mlp_ratio")),
        heads=section.integer("num_heads"),
        window_pixels=0,
        full_attention_layers=[],
        image_pixels=0,
    )


INTERN_TOP: dict[str, tuple[object, ...]] = {
    "downsample_ratio": (0.5,),
    "projector_hidden_act": ("gelu",),
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("default",),
}
INTERN_VISION: dict[str, tuple[object, ...]] = {
    "use_qk_norm": (False,),
    "hidden_act": ("gelu",),
    "norm_type": ("layer_norm",),
    "layer_norm_eps": (1e-6,),
    "num_channels": (3,),
    "patch_size": ([PATCH_PIXELS, PATCH_PIXELS], PATCH_PIXELS),
    "use_mask_token": (False,),
    "use_absolute_position_embeddings": (True,),
    "use_mean_pooling": (True,),
    "hidden_dropout_prob": (0.0,),
    "attention_dropout": (0.0,),
    "projection_dropout": (0.0,),
}
"""What InternVL's may say where there is a choice that is not built here."""


def _intern_vision(top: Section, section: Section) -> VisionConfig:
    for key, values in INTERN_TOP.items():
        top.only(key, *values)
    for key, values in INTERN_VISION.items():
        section.only(key, *values)
    section.must("attention_bias", True)
    size = section.values["image_size"]
    sides = section.integers("image_size") if isinstance(size, list | tuple) else [section.integer("image_size")]
    if len(set(sides)) != 1:
        raise section.refusal("image_size", "must be square")
    top.only("image_seq_length", (sides[0] // (PATCH_PIXELS * PATCH_MERGE)) ** 2)
    return VisionConfig(
        kind=VisionKind.internvit,
        layers=section.integer("num_hidden_layers"),
        hidden=section.integer("hidden_size"),
        intermediate=section.integer("intermediate_size"),
        heads=section.integer("num_attention_heads"),
        window_pixels=0,
        full_attention_layers=[],
        image_pixels=sides[0],
    )
