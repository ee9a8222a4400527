"""transformers' model of our sizes, and what it answers to the documents of our packed rows."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.hf.config_json import config_of
from flagscale_vla.model.pixels import cut_patches, normalize
from flagscale_vla.records import PackedBatch
from tests.model.rows import FILM_TOKEN, IMAGE_TOKEN, Document

TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": FILM_TOKEN,
    "vision_start_token_id": 1,
    "vision_end_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def peer_config(model: ModelConfig) -> transformers.PretrainedConfig:
    """transformers' settings, from the `config.json` that we write."""
    settings = config_of(model, TOKENS, "float32")
    settings.pop("architectures")
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)


def empty_peer(model: ModelConfig) -> Any:
    """transformers' model of the same sizes, with whatever weights it starts from, or none on the meta device."""
    (architecture,) = config_of(model, TOKENS, "float32")["architectures"]
    return getattr(transformers, architecture)(peer_config(model))


def peer(model: ModelConfig) -> Any:
    """transformers' model of the same sizes, with random weights."""
    torch.manual_seed(0)
    theirs = empty_peer(model).eval()
    for parameter in theirs.parameters():
        # Norms of one and biases of zero would hide a mistake in their place.
        parameter.data += 0.1 * torch.randn_like(parameter)
    return theirs


def state_dict(theirs: nn.Module, model: ModelConfig) -> dict[str, Tensor]:
    """Their tensors, without the output layer where it is the embedding."""
    state = dict(theirs.state_dict())
    if model.language.tied:
        del state["lm_head.weight"]
    return state


def peer_outputs(theirs: Any, kind: VisionKind, documents: list[Document], batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of every token of the documents, one document at a time."""
    hidden, logits, patch, image = [], [], 0, 0
    cut = normalize(cut_patches(batch.pixels, batch.frames, batch.grid, 1 if kind is VisionKind.internvit else 2), kind)
    for n, document in enumerate(documents):
        rows = slice(int(batch.cu_seqlens[n]), int(batch.cu_seqlens[n + 1]))
        patches, images = 4 * sum(document.image_tokens), len(document.grids)
        pixels = cut[patch : patch + patches]
        grid = batch.grid[image : image + images]
        inputs = _images(kind, pixels, grid, document) if images else {}
        positions = batch.positions[0, None, rows] if kind is VisionKind.internvit else batch.positions[:, None, rows]
        state = theirs.model(input_ids=batch.tokens[None, rows], position_ids=positions, use_cache=False, **inputs)
        hidden.append(state.last_hidden_state[0])
        logits.append(theirs.lm_head(hidden[-1]))
        patch, image = patch + patches, image + images
    return torch.cat(hidden), torch.cat(logits)


def _images(kind: VisionKind, pixels: Tensor, grid: Tensor, document: Document) -> dict[str, Tensor]:
    if kind is not VisionKind.internvit:
        still = 4 * sum(document.image_tokens[: len(document.images)])
        images = {"pixel_values": pixels[:still], "image_grid_thw": grid[: len(document.images)]}
        film = {"pixel_values_videos": pixels[still:], "video_grid_thw": grid[len(document.images) :]}
        return (images if document.images else {}) | (film if document.film else {})
    side = int(grid[0, 1]) // 2
    # (image, row and column of the group, row and column in it, channel, pixel row, pixel column)
    cut = pixels.reshape(len(grid), side, side, 2, 2, 3, 14, 14)
    return {"pixel_values": cut.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(grid), 3, 28 * side, 28 * side)}
