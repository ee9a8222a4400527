"""Files beside the weights in the form of LeRobot's policy `eo1`: its config, processors and their statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from flagscale_vla.action.vocabulary import ACTION_TOKENS
from flagscale_vla.config.exchange import ExportRun
from flagscale_vla.hf.checkpoint import Checkpoint
from flagscale_vla.hf.eo1 import ENDS, TOP, horizon, sub_configs
from flagscale_vla.hf.processor import token_ids, write_json, write_processor
from flagscale_vla.hf.robots import ACTION, STATE, Robot, choose_robot, mode

PASS = "<|action_pass|>"
LEROBOT_TOKENS = (*(token for token in ACTION_TOKENS if token != PASS), PASS)
"""LeRobot adds seven tokens; the eighth keeps the last of the ids, so that nothing is lost."""
EPS = 1e-8


def moved_places(tokenizer: Tokenizer) -> tuple[tuple[int, int], ...]:
    """(our id, LeRobot's id) of each of EO-1's tokens: the same ids, given out in LeRobot's order.

    Raises:
        ValueError: the tokenizer lacks one.
    """
    ids = {token: tokenizer.token_to_id(token) for token in ACTION_TOKENS}
    lacking = [token for token, number in ids.items() if number is None]
    if lacking:
        raise ValueError(f"the checkpoint's tokenizer lacks {', '.join(lacking)}")
    known = [number for number in ids.values() if number is not None]
    return tuple((ids[token] or 0, there) for token, there in zip(LEROBOT_TOKENS, sorted(known), strict=True))


def move_tokens(tokenizer: Tokenizer, places: Sequence[tuple[int, int]]) -> Tokenizer:
    """The tokenizer with EO-1's tokens at LeRobot's ids."""
    content = json.loads(tokenizer.to_str())
    moved = dict(places)
    for token in content["added_tokens"]:
        token["id"] = moved.get(token["id"], token["id"])
    content["added_tokens"].sort(key=lambda token: token["id"])
    return Tokenizer.from_str(json.dumps(content))


def write_lerobot(run: ExportRun, checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Write the policy's `config.json`, the two processors with their statistics, and Qwen's processor.

    Raises:
        ConfigError: which robot is meant is not clear.
        ValueError: the checkpoint has no statistics.
    """
    robot = choose_robot(checkpoint, run.robot)
    config = policy_config(run, checkpoint, robot, dtype)
    write_json(folder / "config.json", config)
    tokenizer = move_tokens(checkpoint.tokenizer, moved_places(checkpoint.tokenizer))
    write_processor(checkpoint, folder, tokenizer, "Qwen2_5_VLProcessor")
    tensors = {
        f"{key}.{name}": torch.tensor(values, dtype=torch.float32)
        for key, statistics in robot.statistics.items()
        for name, values in statistics.items()
    }
    write_steps(folder, "policy_preprocessor", before(config), tensors)
    write_steps(folder, "policy_postprocessor", after(config), tensors)


def policy_config(run: ExportRun, checkpoint: Checkpoint, robot: Robot, dtype: str) -> dict[str, Any]:
    """`config.json` of the policy. `pretrained_path` is set, or LeRobot would fetch `vlm_base`'s weights first."""
    recipe, flow, ids = checkpoint.recipe, checkpoint.model.flow, token_ids(checkpoint)
    assert recipe is not None
    here = str(Path(run.output).resolve())
    tied = {"tie_word_embeddings": checkpoint.model.language.tied, "dtype": dtype}
    action, rule = recipe["action"], mode(checkpoint)
    return {
        "type": "eo1",
        "input_features": {
            **{camera: {"type": "VISUAL", "shape": [3, *run.image_sides]} for camera in robot.cameras},
            STATE: {"type": "STATE", "shape": [len(robot.state)]},
        },
        "output_features": {ACTION: {"type": "ACTION", "shape": [len(robot.action)]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": rule, "ACTION": rule},
        "push_to_hub": False,
        "pretrained_path": here,
        "vlm_base": run.vlm_base or here,
        "vlm_config": {
            "model_type": "qwen2_5_vl",
            **tied,
            **{key: ids[key] for key in (*TOP, *ENDS)},
            **sub_configs(checkpoint, dtype),
        },
        "image_min_pixels": recipe["image"]["min_pixels"],
        "image_max_pixels": recipe["image"]["max_pixels"],
        "chunk_size": horizon(checkpoint),
        "n_action_steps": horizon(checkpoint),
        "max_state_dim": flow.width,
        "max_action_dim": flow.width,
        "num_denoise_steps": run.denoise_steps,
        "num_action_layers": flow.output_layers,
        "action_act": "linear",
        "time_sampling_beta_alpha": action["beta_alpha"],
        "time_sampling_beta_beta": action["beta_beta"],
        "time_sampling_scale": action["time_scale"],
        "time_sampling_offset": action["time_offset"],
        "min_period": flow.min_period,
        "max_period": flow.max_period,
        "supervise_padding_action_dims": action["supervise_padding"],
        "supervise_padding_actions": False,
        "dtype": dtype,
    }


def before(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps from an observation to the model's input."""
    pictures = {key: config[key] for key in ("image_min_pixels", "image_max_pixels")}
    features = config["input_features"]
    return [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        _scaling("normalizer_processor", config, features | config["output_features"]),
        {
            "registry_name": "eo1_conversation_template_processor",
            "config": {"input_features": features, "chunk_size": config["chunk_size"]},
        },
        {
            "registry_name": "eo1_qwen_processor",
            "config": {"processor_name": config["vlm_base"], **pictures, "use_fast_processor": False},
        },
        _device(),
    ]


def after(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps from the model's answer to the robot's units."""
    return [_scaling("unnormalizer_processor", config, config["output_features"]), _device()]


def _scaling(name: str, config: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
    content = {"eps": EPS, "features": features, "norm_map": config["normalization_mapping"]}
    return {"registry_name": name, "config": content}


def _device() -> dict[str, Any]:
    return {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}


def write_steps(folder: Path, name: str, steps: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> None:
    """Write one processor; the step that scales keeps its statistics in a file of its own."""
    for place, step in enumerate(steps):
        if "norm_map" in step["config"]:
            step["state_file"] = f"{name}_step_{place}_{step['registry_name']}.safetensors"
            save_file(tensors, folder / step["state_file"])
    write_json(folder / f"{name}.json", {"name": name, "steps": steps})
