"""Files beside the weights in the form that EO-1's public code loads: `config.json` and its processor's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from flagscale_vla.config.exchange import ExportRun
from flagscale_vla.hf.checkpoint import Checkpoint
from flagscale_vla.hf.config_json import config_of
from flagscale_vla.hf.processor import ROBOT_TOKENS, token_ids, write_json, write_processor
from flagscale_vla.hf.robots import ACTION, STATE, Robot, mode, robots_of
from flagscale_vla.hf.source import read_json

TOP = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
ENDS = ("bos_token_id", "eos_token_id")
PROCESSOR = "processor_config.json"


def write_eo1(run: ExportRun, checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Write EO-1's `config.json` and processor files.

    Raises:
        ValueError: the checkpoint has neither robots of its own nor imported ones.
    """
    write_json(folder / "config.json", eo1_config(run, checkpoint, dtype))
    write_processor(checkpoint, folder, checkpoint.tokenizer, "EO1VisionProcessor")
    if checkpoint.recipe is None and checkpoint.hf is not None and (checkpoint.hf / PROCESSOR).is_file():
        shutil.copyfile(checkpoint.hf / PROCESSOR, folder / PROCESSOR)
        return
    content = {"processor_class": "EO1VisionProcessor", "robot_config": robot_config(run, checkpoint)}
    write_json(folder / PROCESSOR, content)


def sub_configs(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """`text_config` and `vision_config`, nested, with rotary positions in the spellings of transformers 4 and 5."""
    flat = config_of(checkpoint.model, token_ids(checkpoint), dtype)
    left_out = {*TOP, "architectures", "model_type", "torch_dtype", "vision_config", "rope_scaling"}
    rope = {"rope_type": "default", "mrope_section": flat["rope_scaling"]["mrope_section"]}
    text = {key: value for key, value in flat.items() if key not in left_out} | {
        "model_type": "qwen2_5_vl_text",
        "dtype": dtype,
        "rope_scaling": {"type": "default", **rope},
        "rope_parameters": {**rope, "rope_theta": flat["rope_theta"]},
    }
    return {"text_config": text, "vision_config": flat["vision_config"]}


def eo1_config(run: ExportRun, checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """`config.json` of EO-1's model class, ids and action settings included."""
    ids, flow = token_ids(checkpoint), checkpoint.model.flow
    return {
        "architectures": ["EO1VisionFlowMatchingModel"],
        "model_type": "eo1",
        "dtype": dtype,
        **{key: ids[key] for key in (*TOP, *ENDS)},
        **{key: checkpoint.tokenizer.token_to_id(token) for key, token in ROBOT_TOKENS.items()},
        "action_chunk_size": horizon(checkpoint),
        "max_action_dim": flow.width,
        "num_denoise_steps": run.denoise_steps,
        "action_act": "linear",
        "num_action_layers": flow.output_layers,
        "tie_word_embeddings": checkpoint.model.language.tied,
        "use_cache": True,
        **sub_configs(checkpoint, dtype),
    }


def horizon(checkpoint: Checkpoint) -> int:
    """Steps in a chunk.

    Raises:
        ValueError: the checkpoint does not say.
    """
    if checkpoint.recipe is not None:
        return int(checkpoint.recipe["action"]["horizon"])
    imported = read_json(checkpoint.hf / "config.json") if checkpoint.hf is not None else {}
    if "action_chunk_size" not in imported:
        raise ValueError(f"{checkpoint.folder}: how long its chunks are is not known: it was imported, not trained")
    return int(imported["action_chunk_size"])


def robot_config(run: ExportRun, checkpoint: Checkpoint) -> dict[str, Any]:
    """What EO-1's processor knows of each robot, by its name."""
    robots = robots_of(checkpoint)
    return {
        "state_mode": mode(checkpoint),
        "max_state_dim": checkpoint.model.flow.width,
        "max_action_dim": checkpoint.model.flow.width,
        "action_chunk_size": horizon(checkpoint),
        "features": {name: _features(robot, run.image_sides) for name, robot in robots.items()},
        "stats": {name: robot.statistics for name, robot in robots.items()},
        "select_video_keys": {name: list(robot.cameras) for name, robot in robots.items()},
        "select_state_keys": {name: [STATE] for name in robots},
        "select_action_keys": {name: [ACTION] for name in robots},
    }


def _features(robot: Robot, sides: list[int]) -> dict[str, Any]:
    picture = {"dtype": "video", "shape": [*sides, 3], "names": ["height", "width", "channels"]}
    vectors = {STATE: robot.state, ACTION: robot.action}
    return dict.fromkeys(robot.cameras, picture) | {
        key: {"dtype": "float32", "shape": [len(names)], "names": list(names)} for key, names in vectors.items()
    }
