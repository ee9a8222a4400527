"""A `config.json` that `transformers` reads, and the same sizes read back from every form of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from flagscale_vla.config.model import FlowConfig, ModelConfig
from flagscale_vla.hf.config_json import config_of, token_keys, tokens_of
from flagscale_vla.hf.configs import model_of
from tests.model.rows import public_model

MODELS = ["3b", "7b", "32b", "72b", "qwen2_vl_2b", "qwen2_vl_7b", "internvl3_1b"]
FLOW = FlowConfig(width=32, output_layers=2, min_period=0.004, max_period=4.0)


def tokens(model: ModelConfig) -> dict[str, int]:
    return {key: 100 + n for n, key in enumerate(token_keys(model.vision.kind))}


def written(name: str) -> tuple[ModelConfig, dict[str, Any]]:
    """A model and its config.json, as it is after a trip through a file."""
    model = public_model(name)
    return model, json.loads(json.dumps(config_of(model, tokens(model), "bfloat16")))


HUB = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
"""Qwen2.5-VL-3B-Instruct's file, as the hub has it."""


def test_the_hubs_file_is_read() -> None:
    assert model_of(HUB, FLOW, "3b") == public_model("3b")


def test_sizes_that_a_tuned_models_file_leaves_out_are_transformers_own() -> None:
    model, config = written("7b")
    config["vision_config"] = {"hidden_size": 1280, "in_chans": 3, "model_type": "qwen2_5_vl", "spatial_patch_size": 14}
    config["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]}
    assert model_of(config, FLOW, "7b") == model


def test_internvl3s_dynamic_positions_are_the_plain_ones() -> None:
    model, config = written("internvl3_1b")
    config["text_config"]["rope_scaling"] = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}
    assert model_of(config, FLOW, "internvl3_1b") == model


@pytest.mark.parametrize(
    ("name", "top", "text", "tied"),
    [
        ("3b", None, True, True),
        ("3b", False, True, True),
        ("3b", None, None, False),
        ("internvl3_1b", True, False, True),
        ("internvl3_1b", None, True, True),
        ("internvl3_1b", None, None, False),
    ],
)
def test_tied_where_transformers_ties(name: str, top: bool | None, text: bool | None, tied: bool) -> None:
    _, config = written(name)
    flat = {key: value for key, value in config.items() if not isinstance(value, dict) or key == "rope_scaling"}
    config.setdefault("text_config", flat)
    for section, said in ((config, top), (config["text_config"], text)):
        section.pop("tie_word_embeddings", None)
        section.update({} if said is None else {"tie_word_embeddings": said})
    assert model_of(config, FLOW, name).language.tied is tied


BAD = [
    ("3b", {"model_type": "llama"}, "model_type='llama': supported: qwen2_5_vl, qwen2_vl, internvl"),
    ("3b", {"hidden_act": "gelu"}, "hidden_act='gelu': supported: silu"),
    ("3b", {"use_sliding_window": True}, "use_sliding_window=True: supported: False"),
    ("3b", {"layer_types": ["sliding_attention"]}, "layer_types=['sliding_attention']: supported: full_attention"),
    ("3b", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}: supported: None"),
    ("3b", {"head_dim": 64}, "head_dim=64: supported: 128"),
    ("3b", {"num_hidden_layers": "36"}, "num_hidden_layers='36': must be a whole number"),
    ("3b", {"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "rope_scaling.type='yarn': supported:"),
    ("3b", {"rope_scaling": None}, "rope_scaling.mrope_section is missing"),
    ("3b", {"num_attention_heads": 15}, "describes a model that cannot be: model.language.heads=15"),
    ("3b", {"vision_config.patch_size": 16}, "vision_config.patch_size=16: supported: 14"),
    ("3b", {"vision_config.out_hidden_size": 1024}, "vision_config.out_hidden_size=1024: supported: 2048"),
    ("qwen2_vl_2b", {"vision_config.hidden_act": "gelu"}, "vision_config.hidden_act='gelu': supported: quick_gelu"),
    ("internvl3_1b", {"downsample_ratio": 0.25}, "downsample_ratio=0.25: supported: 0.5"),
    ("internvl3_1b", {"vision_feature_layer": -4}, "vision_feature_layer=-4: supported: -1"),
    ("internvl3_1b", {"vision_config.norm_type": "rms_norm"}, "vision_config.norm_type='rms_norm': supported: layer"),
    ("internvl3_1b", {"vision_config.attention_bias": False}, "vision_config.attention_bias=False: supported: True"),
    ("internvl3_1b", {"vision_config.image_size": [448, 224]}, "vision_config.image_size=[448, 224]: must be square"),
    ("internvl3_1b", {"text_config.model_type": "llama"}, "text_config.model_type='llama': supported: qwen2"),
]


@pytest.mark.parametrize(("name", "change", "words"), BAD)
def test_what_is_not_built_is_refused_by_its_key(name: str, change: dict[str, Any], words: str) -> None:
    _, config = written(name)
    (place, value), *_ = change.items()
    *outer, key = place.split(".")
    (config[outer[0]] if outer else config)[key] = value
    with pytest.raises(ValueError, match=re.escape(words)):
        model_of(config, FLOW, name)


def test_missing_token_ids_are_named() -> None:
    with pytest.raises(ValueError, match="needs the token ids image_token_id, eos_token_id"):
        config_of(public_model("internvl3_1b"), {"bos_token_id": 1}, "bfloat16")


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_back(name: str) -> None:
    model, config = written(name)
    assert model_of(config, FLOW, name) == model
    assert tokens_of(config) == tokens(model)


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_writes_of_it_is_read_back(name: str, tmp_path: Path) -> None:
    model, config = written(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.tie_word_embeddings is model.language.tied
    theirs.save_pretrained(tmp_path / "again")
    nested = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "text_config" in nested
    assert model_of(nested, FLOW, name) == model
    assert tokens_of(nested) == tokens(model)
