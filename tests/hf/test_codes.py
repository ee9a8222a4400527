"""A model that answers in codes is exported with what its codes mean, to programs that know codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from omegaconf import OmegaConf

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.vocabulary import code_token
from flagscale_vla.config.checkpoint_files import file_digests, read_metadata, write_metadata
from flagscale_vla.config.checkpoints import CONFIG, METADATA, RECIPE, checkpoint_folder
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import Answer
from flagscale_vla.data.recipe import Recipe
from tests.hf.directories import export_checkpoint, read_tensors, write_checkpoint
from tests.model.rows import settings
from tests.samples import SAWYER, binning, make_recipe

VOCAB = 704


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    model = settings(f"model.language.vocab={VOCAB}").model
    write_checkpoint(output, model)
    folder = checkpoint_folder(output, 7)
    make_recipe(vocab=VOCAB, width=model.flow.width, answer=Answer.codes, codec=binning()).save(folder / RECIPE)
    (folder / CONFIG).write_text(OmegaConf.to_yaml({"model": OmegaConf.structured(model)}))
    metadata = read_metadata(folder)
    (folder / METADATA).unlink()
    metadata.digests.update(file_digests(folder, [RECIPE, CONFIG]))
    write_metadata(folder, metadata)
    return output


def test_an_export_brings_the_action_tokenizer_and_its_tokens(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "out")
    recipe = Recipe.load(checkpoint_folder(checkpoint, 7) / RECIPE)
    codec = load_action_tokenizer(tmp_path / "out" / "action_tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    chunk = np.random.default_rng(0).uniform(-1, 1, (1, 8, 4)).astype(np.float32)
    (codes,) = codec.encode(SAWYER.name, chunk)
    text = "".join(code_token(code) for code in codes)
    assert recipe.codes is not None
    assert tokenizer(text)["input_ids"] == recipe.codes.ids.tokens(codes)
    assert tokenizer.decode(recipe.codes.ids.tokens(codes)) == text
    np.testing.assert_array_equal(codec.decode(SAWYER.name, [codes], 8)[0], recipe.codes.decode(SAWYER.name, codes))
    assert read_tensors(tmp_path / "out")["model.embed_tokens.weight"].shape[0] == VOCAB


@pytest.mark.parametrize("form", ["eo1", "lerobot_eo1"])
def test_programs_that_know_no_codes_get_none(checkpoint: Path, tmp_path: Path, form: str) -> None:
    with pytest.raises(ConfigError, match=rf"form={form}: knows no codes.*action\.answer=codes.*form=plain"):
        export_checkpoint(checkpoint, tmp_path / "out", f"form={form}")
