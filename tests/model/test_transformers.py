"""Our forward equals transformers' Qwen2.5-VL in float32 on the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from flagscale_vla.config.model import ModelConfig
from flagscale_vla.hf.table import name_table, to_ours, to_theirs
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from tests.helpers import run_ranks
from tests.model.rows import ACTIONS, IMAGE_TOKEN, IMAGES, TEXT_ONLY, Document, make_row, settings

TOLERANCE = 1e-5


def peer(model: ModelConfig) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' model of the same sizes, randomly initialised."""
    torch.manual_seed(0)
    vision, language = model.vision, model.language
    rope = {"rope_type": "default", "rope_theta": language.rope_theta, "mrope_section": language.mrope_sections}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": language.hidden,
            "intermediate_size": language.intermediate,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "vocab_size": language.vocab,
            "rms_norm_eps": language.norm_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": language.tied,
        },
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.intermediate,
            "num_heads": vision.heads,
            "out_hidden_size": language.hidden,
            "fullatt_block_indexes": vision.full_attention_layers,
            "window_size": vision.window_pixels,
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=2,
        vision_start_token_id=1,
        tie_word_embeddings=language.tied,
        attn_implementation="sdpa",
    )
    theirs = Qwen2_5_VLForConditionalGeneration(config).eval()
    for parameter in theirs.parameters():
        # Norms of one and biases of zero would hide a mistake in their place.
        parameter.data += 0.1 * torch.randn_like(parameter)
    return theirs


def compare(rank: int, rows: dict[str, list[Document]], tied: bool) -> dict[str, tuple[float, float]]:
    """Largest difference of hidden states and of logits over every document of each packed row."""
    run = settings(f"model.language.tied={tied}")
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    ours = VisionLanguageAction(run.model, run.parallel, platform, topology).eval()
    theirs = peer(run.model)
    missing = ours.load_state_dict(to_ours(run.model, theirs.state_dict()), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("flow") or "_extra_state" in name for name in missing.missing_keys)
    return {name: compare_row(ours, theirs, documents, run.data.pack_length) for name, documents in rows.items()}


@torch.no_grad()
def compare_row(ours: VisionLanguageAction, theirs, documents: list[Document], length: int) -> tuple[float, float]:
    batch = make_row(documents, length)
    hidden, logits = our_outputs(ours, batch)
    reference, reference_logits = their_outputs(theirs, documents, batch)
    return (hidden - reference).abs().max().item(), (logits - reference_logits).abs().max().item()


def our_outputs(model: VisionLanguageAction, batch) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of every token that is not padding, from one packed row."""
    words = model.language.embed(batch.tokens)
    images = model.vision(batch.pixels, batch.grid)
    real = batch.image_slots >= 0
    words = words.index_copy(0, batch.image_slots[real], images[real])
    hidden = model.language.transform(words, batch.cu_seqlens, batch.positions).squeeze(1)[: batch.num_tokens]
    return hidden, model.language.logits(hidden)


def their_outputs(model, documents: list[Document], batch) -> tuple[Tensor, Tensor]:
    """The same from transformers, one document at a time."""
    hidden, logits, patch, image = [], [], 0, 0
    for n, document in enumerate(documents):
        rows = slice(int(batch.cu_seqlens[n]), int(batch.cu_seqlens[n + 1]))
        tokens = batch.tokens[None, rows]
        inputs = {"input_ids": tokens, "position_ids": batch.positions[:, None, rows]}
        if document.images:
            count = 4 * sum(document.image_tokens)
            inputs["pixel_values"] = batch.pixels[patch : patch + count]
            inputs["image_grid_thw"] = batch.grid[image : image + len(document.images)]
            patch, image = patch + count, image + len(document.images)
        state = model.model(**inputs, use_cache=False).last_hidden_state[0]
        hidden.append(state)
        logits.append(model.lm_head(state))
    return torch.cat(hidden), torch.cat(logits)


ROWS = {
    "text": [Document(40)],
    "one image": [Document(12, images=((4, 8),))],
    "images of different sizes": [Document(9, images=((4, 8), (12, 4), (2, 2)))],
    "packed text": TEXT_ONLY,
    "packed images": IMAGES,
    "packed, images and long text": [*ACTIONS[2:], *IMAGES, Document(60)],
}


@pytest.mark.parametrize("tied", [True, False])
def test_forward_equals_transformers(tied: bool) -> None:
    differences = run_ranks(compare, 1, ROWS, tied)[0]
    assert {name: hidden for name, (hidden, _) in differences.items() if hidden >= TOLERANCE} == {}
    assert {name: logits for name, (_, logits) in differences.items() if logits >= TOLERANCE * 10} == {}


@pytest.mark.parametrize("tied", [True, False])
def test_every_name_is_hit_once_and_back_is_the_identity(tied: bool) -> None:
    model = settings(f"model.language.tied={tied}").model
    theirs = dict(peer(model).state_dict())
    if tied:
        theirs.pop("lm_head.weight")
    table = name_table(model)
    names = [name for row in table for name in row.theirs]
    assert sorted(names) == sorted(theirs)
    assert len({row.ours for row in table}) == len(table)
    back = to_theirs(model, to_ours(model, theirs))
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_a_missing_tensor_is_named() -> None:
    model = settings().model
    theirs = dict(peer(model).state_dict())
    del theirs["model.language_model.norm.weight"]
    with pytest.raises(ValueError, match=r"model\.language_model\.norm\.weight"):
        to_ours(model, theirs)
