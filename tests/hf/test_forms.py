"""EO-1's and LeRobot's forms: names, ids, places of embedding rows, settings and statistics as their public code has
them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flagscale_vla.action.scaling import public_statistics
from flagscale_vla.action.vocabulary import ACTION_TOKENS
from flagscale_vla.config.checkpoint_files import file_digests, read_metadata, write_metadata
from flagscale_vla.config.checkpoints import find_checkpoint
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import Normalization
from flagscale_vla.robots.statistics import RobotStatistics, Statistics, make_scaler, statistics_to_json
from tests.hf.directories import export_checkpoint, read_tensors, small_model, write_checkpoint

EMBEDDING = "language.embedding.word_embeddings.weight"
HEAD = {
    f"{name}.{kind}"
    for name in (
        "state_proj",
        "action_in_proj",
        "action_time_mlp_in",
        "action_time_mlp_out",
        "action_out_proj.0",
        "action_out_proj.2",
    )
    for kind in ("weight", "bias")
}
LEROBOT_ORDER = (
    "<|action_start|>",
    "<|action_pad|>",
    "<|action_end|>",
    "<|state_start|>",
    "<|state_pad|>",
    "<|state_end|>",
    "<|vla|>",
)
"""The order in which LeRobot's processor adds its seven tokens."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, write_checkpoint(folder, small_model("qwen2_5_vl", request.param), torch.bfloat16)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_eo1s_names_and_settings(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, ours = trained
    export_checkpoint(folder, tmp_path / "out", "form=eo1", "denoise_steps=7")
    tensors = read_tensors(tmp_path / "out")
    untied = "language.output_layer.weight" in ours
    assert {name for name in tensors if not name.startswith("vlm_backbone.")} == HEAD
    starts = {".".join(name.split(".")[:2]) for name in tensors.keys() - HEAD}
    assert starts == {"vlm_backbone.visual", "vlm_backbone.model"} | ({"vlm_backbone.lm_head"} if untied else set())
    assert torch.equal(tensors["action_out_proj.2.weight"], ours["flow_out.action_out_proj.1.weight"])
    assert tensors["state_proj.weight"].dtype is torch.float32
    assert tensors["vlm_backbone.visual.patch_embed.proj.weight"].shape == (32, 3, 2, 14, 14)
    config, tokenizer = read(tmp_path / "out" / "config.json"), Tokenizer.from_file(f"{tmp_path}/out/tokenizer.json")
    assert config["model_type"] == "eo1"
    assert config["text_config"]["tie_word_embeddings"] is not untied
    assert config["text_config"]["rope_scaling"]["mrope_section"] == [2, 3, 3]
    chosen = ("action_chunk_size", "max_action_dim", "num_denoise_steps", "num_action_layers", "action_act")
    assert [config[key] for key in chosen] == [8, 8, 7, 2, "linear"]
    for key, token in (("state_token_id", "<|state_pad|>"), ("action_pass_id", "<|action_pass|>")):
        assert config[key] == tokenizer.token_to_id(token)
    robots = read(tmp_path / "out" / "processor_config.json")["robot_config"]
    assert robots["stats"].keys() == robots["features"].keys() == {"sawyer", "panda"}
    assert robots["select_video_keys"]["sawyer"] == ["observation.images.front", "observation.images.wrist"]


def test_lerobots_names_rows_and_settings(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, ours = trained
    export_checkpoint(folder, tmp_path / "out", "form=lerobot_eo1", "robot=panda", "max_shard_bytes=1000")
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    tensors = read_tensors(tmp_path / "out")
    assert {name.removeprefix("model.") for name in tensors if "vlm_backbone" not in name} == HEAD
    untied = "language.output_layer.weight" in ours
    embeddings = {name for name in tensors if "embed_tokens" in name or "lm_head" in name}
    lower = {"model.vlm_backbone.model.language_model.embed_tokens.weight"} if untied else set()
    assert embeddings == {"model.vlm_backbone.lm_head.weight"} | lower
    config = read(tmp_path / "out" / "config.json")
    assert config["type"] == "eo1"
    assert config["vlm_config"]["tie_word_embeddings"] is not untied
    assert config["pretrained_path"] == config["vlm_base"] == str(tmp_path / "out")
    assert config["input_features"]["observation.state"] == {"type": "STATE", "shape": [7]}
    steps = read(tmp_path / "out" / "policy_preprocessor.json")["steps"]
    (scaling,) = (step for step in steps if "state_file" in step)
    assert read_tensors(tmp_path / "out", scaling["state_file"])["action.std"].tolist() == [1.0] * 7


def test_lerobots_tokens_find_their_own_rows(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, ours = trained
    export_checkpoint(folder, tmp_path / "out", "form=lerobot_eo1", "robot=sawyer")
    before = Tokenizer.from_file(str(find_checkpoint(folder) / "recipe" / "tokenizer.json"))
    after = Tokenizer.from_file(f"{tmp_path}/out/tokenizer.json")
    first = before.token_to_id(ACTION_TOKENS[0])
    assert [after.token_to_id(token) for token in LEROBOT_ORDER] == list(range(first, first + 7))
    tensors = read_tensors(tmp_path / "out")
    pairs = {"model.vlm_backbone.lm_head.weight": ours.get("language.output_layer.weight", ours[EMBEDDING])}
    if "language.output_layer.weight" in ours:
        pairs["model.vlm_backbone.model.language_model.embed_tokens.weight"] = ours[EMBEDDING]
    for name, stored in pairs.items():
        for token, number in after.get_vocab(with_added_tokens=True).items():
            assert torch.equal(tensors[name][number], stored[before.token_to_id(token)]), (name, token)
        assert torch.equal(tensors[name][first + 8 :], stored[first + 8 :])


def test_eo1s_ids_behind_qwens_vocabulary_become_lerobots() -> None:
    """The ids that both projects publish, for the places of EO-1's eight tokens behind 151,665 others."""
    from flagscale_vla.hf.lerobot import moved_places

    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "model": {"type": "WordLevel", "vocab": {str(n): n for n in range(151665)}, "unk_token": "0"},
            }
        )
    )
    tokenizer.add_special_tokens(list(ACTION_TOKENS))
    assert moved_places(tokenizer) == (
        (151665, 151665),
        (151666, 151666),
        (151668, 151667),
        (151669, 151668),
        (151670, 151669),
        (151671, 151670),
        (151672, 151671),
        (151667, 151672),
    )


@pytest.mark.parametrize(
    ("overrides", "words"), [(["robot=spot"], "robot=spot: must be one of"), ([], "robot='': must be one of")]
)
def test_lerobots_one_robot_must_be_clear(
    trained: tuple[Path, dict[str, Tensor]], overrides: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        export_checkpoint(trained[0], tmp_path / "out", "form=lerobot_eo1", *overrides)


def test_other_periods_cannot_be_told_to_eo1(tmp_path: Path) -> None:
    model = small_model("qwen2_5_vl")
    write_checkpoint(tmp_path / "ours", replace(model, flow=replace(model.flow, max_period=8.0)))
    with pytest.raises(ConfigError, match="form=eo1: EO-1's code embeds time"):
        export_checkpoint(tmp_path / "ours", tmp_path / "out", "form=eo1")
    export_checkpoint(tmp_path / "ours", tmp_path / "le", "form=lerobot_eo1", "robot=panda")
    assert read(tmp_path / "le" / "config.json")["max_period"] == 8.0


def test_an_action_tokenizers_weights_go_along(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "ours")
    folder = find_checkpoint(tmp_path / "ours")
    (folder / "recipe" / "action_tokenizer").mkdir()
    (folder / "recipe" / "action_tokenizer" / "model.safetensors").write_bytes(b"codes")
    metadata = read_metadata(folder)
    write_metadata(folder, replace(metadata, digests=file_digests(folder, metadata.digests)))
    export_checkpoint(tmp_path / "ours", tmp_path / "out")
    assert (tmp_path / "out" / "action_tokenizer" / "model.safetensors").read_bytes() == b"codes"
    assert read(tmp_path / "out" / "recipe.json")["embodiments"].keys() == {"sawyer", "panda"}


@pytest.mark.parametrize("kind", Normalization)
def test_public_statistics_scale_as_training_does(kind: Normalization) -> None:
    """LeRobot's formulas on them, for a dim that moves, one that hardly ever does and one that never does."""
    seen = Statistics(
        count=9,
        mean=(1.0, 0.1, 5.0),
        std=(2.0, 0.5, 0.0),
        min=(-4.0, 0.0, 5.0),
        max=(6.0, 3.0, 5.0),
        q01=(-3.0, 0.0, 5.0),
        q99=(5.0, 0.0, 5.0),
    )
    never = replace(seen, count=0, mean=(), std=(), min=(), max=(), q01=(), q99=())
    public = public_statistics(statistics_to_json({"arm": RobotStatistics(state=seen, action=never)}), kind)["arm"]
    assert public.keys() == {"state"}
    numbers = {name: np.asarray(values) for name, values in public["state"].items()}
    values = np.asarray([[0.5, 0.2, 5.0], [7.0, -1.0, 5.0000002]], np.float32)
    if kind is Normalization.mean_std:
        theirs = (values - numbers["mean"]) / (numbers["std"] + 1e-8)
    else:
        theirs = 2 * (values - numbers["min"]) / (numbers["max"] - numbers["min"]) - 1
    np.testing.assert_allclose(theirs, make_scaler(seen, kind).normalize(values), atol=1e-6)
