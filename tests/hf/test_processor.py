"""transformers' own classes load what stands beside exported weights, and make of a sample what training made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from flagscale_vla.config.checkpoints import find_checkpoint
from flagscale_vla.config.model import VisionKind
from flagscale_vla.data import images
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.model.pixels import cut_patches, normalize
from flagscale_vla.records import Image, Sample, Text
from tests.hf.directories import export_checkpoint, import_directory, small_model, write_checkpoint, write_directory
from tests.samples import robot_sample

FORMS = {"plain": [], "eo1": [], "lerobot_eo1": ["robot=sawyer"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and, beside it, its exports by form."""
    folder = tmp_path_factory.mktemp("processor")
    write_checkpoint(folder / "ours", small_model("qwen2_5_vl"))
    for form, overrides in FORMS.items():
        export_checkpoint(folder / "ours", folder / form, f"form={form}", *overrides)
    return folder


def sample_of(folder: Path) -> tuple[Recipe, Sample]:
    recipe = Recipe.load(find_checkpoint(folder / "ours") / "recipe")
    return recipe, recipe.sample(robot_sample(3), seed=0, epoch=0, augment=False)


def conversation() -> list[dict[str, object]]:
    """The segments of that sample as messages."""
    segments = robot_sample(3).segments
    pictures = [{"type": "image"} for segment in segments if isinstance(segment, Image)]
    (text,) = (segment.text for segment in segments if isinstance(segment, Text))
    return [
        {"role": "user", "content": [*pictures, {"type": "state"}, {"type": "text", "text": f"{text}<|vla|>"}]},
        {"role": "assistant", "content": [{"type": "action"}]},
    ]


def expanded(text: str, sample: Sample, horizon: int) -> str:
    """Pads repeated as processors do: for each merged patch, and for each step of a chunk."""
    for _, rows, columns in sample.grid.tolist():
        text = text.replace("<|image_pad|>", "<|place|>" * (rows * columns // 4), 1)
    return text.replace("<|place|>", "<|image_pad|>").replace("<|action_pad|>", "<|action_pad|>" * horizon)


@pytest.mark.parametrize("form", FORMS)
def test_tokenizer_and_template_lay_a_sample_out_as_training_did(form: str, trained: Path) -> None:
    recipe, sample = sample_of(trained)
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / form, local_files_only=True)
    text = tokenizer.apply_chat_template(conversation(), tokenize=False)
    ids = tokenizer(expanded(text, sample, recipe.action.horizon))["input_ids"]
    spelled = [recipe.tokenizer.id_to_token(number) for number in sample.tokens.tolist()]
    assert tokenizer.convert_ids_to_tokens(ids) == spelled
    if form != "lerobot_eo1":
        assert ids == sample.tokens.tolist()
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_pictures_become_the_patches_of_training(trained: Path) -> None:
    _, sample = sample_of(trained)
    processor = transformers.AutoImageProcessor.from_pretrained(trained / "plain", local_files_only=True)
    pictures = [s for s in robot_sample(3).segments if isinstance(s, Image)]
    given = processor([images.decode(s.name, s.encoded) for s in pictures], return_tensors="pt")
    assert torch.equal(given["image_grid_thw"], sample.grid)
    ours = normalize(cut_patches(sample.pixels, sample.frames, sample.grid), VisionKind.qwen2_5_vl)
    torch.testing.assert_close(given["pixel_values"], ours, atol=0.02, rtol=0)


def test_the_template_takes_plain_messages_and_a_noise_prompt(trained: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "eo1", local_files_only=True)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, noise_prompt="<|action_start|>"
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
        "<|im_start|>assistant\n<|action_start|>"
    )
    text = tokenizer.apply_chat_template(messages[1:], tokenize=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful physical assistant.<|im_end|>\n")


def test_generation_ends_at_a_turns_end(trained: Path) -> None:
    settings = transformers.GenerationConfig.from_pretrained(trained / "plain", local_files_only=True)
    tokenizer = Tokenizer.from_file(str(trained / "plain" / "tokenizer.json"))
    assert settings.eos_token_id == [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "internvl"])
def test_the_whole_processor_loads(family: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="transformers' video processors need it")
    write_directory(tmp_path / "in", family)
    import_directory(tmp_path / "in", tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    side = 56 if family == "internvl" else 112
    picture = np.zeros((side, side, 3), np.uint8)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", local_files_only=True)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
