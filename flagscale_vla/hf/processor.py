"""What stands beside exported weights for those who read text and pictures with them: `transformers`' small files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flagscale_vla.config.checkpoints import RECIPE
from flagscale_vla.config.image import TOKEN_PIXELS
from flagscale_vla.config.model import PATCH_FRAMES, PATCH_MERGE, PATCH_PIXELS, VisionKind
from flagscale_vla.hf.checkpoint import Checkpoint
from flagscale_vla.hf.config_json import token_keys, tokens_of
from flagscale_vla.hf.source import source_config

PROCESSORS = {
    VisionKind.qwen2_5_vl: "Qwen2_5_VLProcessor",
    VisionKind.qwen2_vl: "Qwen2VLProcessor",
    VisionKind.internvit: "InternVLProcessor",
}
SYSTEM = "You are a helpful assistant."
"""Qwen2.5-VL's own default; a trained checkpoint has its own."""
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 16384
"""Qwen2.5-VL's own limits; a trained checkpoint has its own."""
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
INTERN_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""What InternVL's processor looks up in its tokenizer."""
SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
}
"""`config.json`'s key to the token whose id it holds."""
ROBOT_TOKENS = {
    "state_token_id": "<|state_pad|>",
    "action_token_id": "<|action_pad|>",
    "action_pass_id": "<|action_pass|>",
}
"""EO-1's further keys."""
ACTION = "<|action_start|><|action_pad|><|action_end|>"
STATE = "<|state_start|><|state_pad|><|state_end|>"
PARTS = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "state": STATE,
    "action": ACTION,
}
"""Kind of a message's part to its text; processors repeat the pads."""


def chat_template(system: str, parts: Mapping[str, str]) -> str:
    """A Jinja template of Qwen's conversations whose default system text is training's.

    It knows the given kinds of parts besides text, and ends with `noise_prompt`, which EO-1's processor passes.
    """
    first = json.dumps(f"<|im_start|>system\n{system}<|im_end|>\n", ensure_ascii=False)
    branches = "".join(
        f"{{%- {'elif' if n else 'if'} part['type'] == '{kind}' or '{kind}' in part -%}}{{{{- '{text}' -}}}}"
        for n, (kind, text) in enumerate(parts.items())
    )
    return (
        f"{{%- if messages[0]['role'] != 'system' -%}}{{{{- {first} -}}}}{{%- endif -%}}"
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}"
        f"{{%- else -%}}{{%- for part in message['content'] -%}}{branches}"
        "{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{{- '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
        "{%- if noise_prompt is defined and noise_prompt -%}{{- noise_prompt -}}{%- endif -%}"
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that people may read too."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def token_ids(checkpoint: Checkpoint) -> dict[str, int]:
    """Ids for `config.json`, by its keys: the imported directory's, else the tokenizer's.

    Raises:
        ValueError: the tokenizer lacks a token that it needs.
    """
    context = INTERN_TOKENS["context_image_token"]
    tokens = SPECIAL | ({"image_token_id": context} if checkpoint.tokenizer.token_to_id(context) is not None else {})
    known = {key: checkpoint.tokenizer.token_to_id(token) for key, token in tokens.items()}
    ids = {key: number for key, number in known.items() if number is not None}
    if checkpoint.hf is not None and checkpoint.recipe is None:
        ids |= tokens_of(source_config(checkpoint.hf))
    lacking = [tokens[key] for key in token_keys(checkpoint.model.vision.kind) if key not in ids]
    if lacking:
        raise ValueError(f"{checkpoint.folder / RECIPE}: the tokenizer lacks {', '.join(lacking)}")
    return ids


def write_processor(checkpoint: Checkpoint, folder: Path, tokenizer: Tokenizer, processor: str) -> None:
    """Write tokenizer, chat template, picture and generation settings.

    What an imported checkpoint brought along is kept; what training decides is the checkpoint's own.

    Args:
        checkpoint: where all of it comes from.
        folder: where to; it exists.
        tokenizer: the checkpoint's, in the form's ids.
        processor: name of the class that reads the folder.
    """
    internvl = checkpoint.model.vision.kind is VisionKind.internvit
    pictures = _intern_pictures(checkpoint) if internvl else _qwen_pictures(checkpoint)
    write_json(folder / "preprocessor_config.json", {"processor_class": processor, **pictures})
    videos = {name: value for name, value in pictures.items() if name != "image_processor_type"}
    videos |= {} if internvl else _film_sizes(checkpoint)
    kind = "InternVLVideoProcessor" if internvl else "Qwen2VLVideoProcessor"
    write_json(folder / "video_preprocessor_config.json", {"video_processor_type": kind, **videos})
    write_json(folder / "generation_config.json", _generation(checkpoint))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, processor, internvl))
    if internvl:
        tokens = (checkpoint.model.vision.tile_side // PATCH_MERGE) ** 2
        write_json(folder / "processor_config.json", {"processor_class": processor, "image_seq_length": tokens})
    system = checkpoint.recipe["system_prompt"] if checkpoint.recipe else SYSTEM
    parts = PARTS | ({"image": "<IMG_CONTEXT>\n", "video": "<video>\n"} if internvl else {})
    (folder / "chat_template.jinja").write_text(chat_template(system, parts), encoding="utf-8")
    if checkpoint.recipe is None and checkpoint.hf is not None and processor in PROCESSORS.values():
        _keep_imported(checkpoint.hf, folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def _keep_imported(imported: Path, folder: Path) -> None:
    """Put the imported directory's own files in the place of those made here; its weights are as they were."""
    files = [path for path in imported.iterdir() if path.name not in ("config.json", "tokenizer.json")]
    if any(path.name.startswith("chat_template") for path in files):
        (folder / "chat_template.jinja").unlink()
    for path in files:
        shutil.copyfile(path, folder / path.name)


def _qwen_pictures(checkpoint: Checkpoint) -> dict[str, Any]:
    image = checkpoint.recipe["image"] if checkpoint.recipe else {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    low, high = image["min_pixels"], image["max_pixels"]
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": low,
        "max_pixels": high,
        "size": {"shortest_edge": low, "longest_edge": high},
        "patch_size": PATCH_PIXELS,
        "temporal_patch_size": PATCH_FRAMES,
        "merge_size": PATCH_MERGE,
        **CLIP,
    }


def _film_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What differs for the frames of films: their own limits, where training had any."""
    film = checkpoint.recipe["image"].get("video") if checkpoint.recipe else None
    if film is None:
        return {}
    low, high, total = film["min_pixels"], film["max_pixels"], film["total_pixels"]
    sizes = {"min_pixels": low, "max_pixels": high, "size": {"shortest_edge": low, "longest_edge": high}}
    # transformers counts nine tenths of a context in merged tokens.
    budget = {"max_video_tokens": round(total / (TOKEN_PIXELS * 0.9))} if total else {}
    return sizes | {"do_sample_frames": False, "cap_pixels_per_frame": bool(total)} | budget


def _intern_pictures(checkpoint: Checkpoint) -> dict[str, Any]:
    side = checkpoint.model.vision.image_pixels
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": False,
        "size": {"height": side, "width": side},
        **IMAGENET,
    }


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    ids = token_ids(checkpoint)
    return {
        "bos_token_id": ids["bos_token_id"],
        "eos_token_id": [ids["eos_token_id"], ids["bos_token_id"]],
        "pad_token_id": ids["bos_token_id"],
        "do_sample": False,
    }


def _tokenizer_config(tokenizer: Tokenizer, processor: str, internvl: bool) -> dict[str, Any]:
    added = json.loads(tokenizer.to_str())["added_tokens"]
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": processor,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        **({"extra_special_tokens": INTERN_TOKENS} if internvl else {}),
    }
