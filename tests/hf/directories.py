"""Small Hugging Face directories and checkpoints of random weights, and the two jobs run on them."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from flagscale_vla.config.checkpoint_files import FORMAT, Metadata, file_digests, write_metadata
from flagscale_vla.config.checkpoints import CONFIG, RECIPE, WEIGHTS, checkpoint_folder
from flagscale_vla.config.model import FlowConfig, ModelConfig
from flagscale_vla.config.stored import flat_settings
from flagscale_vla.data.tokenizer import fit_tokenizer
from flagscale_vla.hf import exporter, importer
from flagscale_vla.hf.config_json import config_of
from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.processor import SPECIAL
from flagscale_vla.hf.spelling import old_name
from flagscale_vla.hf.table import name_table
from flagscale_vla.mcore.storage import WholeWriter
from tests.model.peers import peer, state_dict
from tests.model.rows import FAMILIES, settings
from tests.samples import SENTENCE, make_recipe
from tests.settings import load

VOCAB = 512
INTERN = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")


def small_model(family: str, tied: bool = True, *overrides: str) -> ModelConfig:
    """The sizes of a very small model whose vocabulary holds a fitted tokenizer."""
    tie = f"model.language.tied={str(tied).lower()}"
    return settings(*FAMILIES[family], f"model.language.vocab={VOCAB}", tie, *overrides).model


@cache
def fitted() -> str:
    """A `tokenizer.json` with Qwen's and InternVL's special tokens; EO-1's come last."""
    tokenizer = fit_tokenizer([SENTENCE] * 3, 400)
    tokenizer.add_special_tokens(list(INTERN))
    return tokenizer.to_str()


def plain_tokenizer() -> Tokenizer:
    """The same without EO-1's tokens, as a public directory has it."""
    content = json.loads(fitted())
    kept = [token for token in content["added_tokens"] if "action" not in token["content"]]
    content["added_tokens"] = [t for t in kept if "state" not in t["content"] and t["content"] != "<|vla|>"]
    for number, token in enumerate(content["added_tokens"], start=content["added_tokens"][0]["id"]):
        token["id"] = number
    return Tokenizer.from_str(json.dumps(content))


def tokens(tokenizer: Tokenizer, family: str) -> dict[str, int]:
    """Ids for `config.json`."""
    ids = {key: tokenizer.token_to_id(token) for key, token in SPECIAL.items()}
    return ids | ({"image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>")} if family == "internvl" else {})


def write_directory(
    folder: Path, family: str, tied: bool = True, *, new_names: bool = False, files: int = 1, dtype: str = "float32"
) -> ModelConfig:
    """A directory as the hub has them: config, tokenizer and random weights in one file or several."""
    model, tokenizer = small_model(family, tied), plain_tokenizer()
    folder.mkdir(parents=True)
    tensors = {name: value.to(getattr(torch, dtype)) for name, value in state_dict(peer(model), model).items()}
    named = {name if new_names else old_name(model, name): value.contiguous() for name, value in tensors.items()}
    write_tensors(folder, named, files)
    config = config_of(model, tokens(tokenizer, family), dtype)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 1.0}))
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def write_tensors(folder: Path, named: dict[str, Tensor], files: int = 1) -> None:
    """Write tensors into one file, or several with an index."""
    if files == 1:
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(named)
    parts = {f"model-{n + 1:05d}-of-{files:05d}.safetensors": names[n::files] for n in range(files)}
    for file, part in parts.items():
        save_file({name: named[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_tensors(folder: Path, pattern: str = "model*.safetensors") -> dict[str, Tensor]:
    """Every tensor of a directory, by its name in the files."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob(pattern)):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    return found


def write_checkpoint(output: Path, model: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A checkpoint as training leaves one, flow head and recipe included; its tensors."""
    folder = checkpoint_folder(output, 7)
    generator = torch.Generator().manual_seed(0)
    tensors = {row.ours: torch.randn(row.shape, generator=generator).to(dtype) for row in name_table(model)}
    tensors |= {row.ours: torch.randn(row.shape, generator=generator) for row in head_table(model)}
    with WholeWriter(folder / WEIGHTS) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
            writer.write(f"exp_avg/{name}", tensor)
    describe(folder, model)
    return tensors


def describe(folder: Path, model: ModelConfig) -> None:
    """Write what training writes beside the weights."""
    recipe = make_recipe(width=model.flow.width, vocab=VOCAB)
    recipe.save(folder / RECIPE)
    (folder / CONFIG).write_text(OmegaConf.to_yaml({"model": OmegaConf.structured(model)}))
    manifests = [f"{WEIGHTS}/{path.name}" for path in (folder / WEIGHTS).glob("*.json")]
    metadata = Metadata(
        format=FORMAT,
        step=7,
        model=flat_settings(model),
        parallel={},
        special_tokens=asdict(recipe.vocabulary),
        samples="",
        digests=file_digests(folder, [*manifests, RECIPE, CONFIG]),
        versions={},
        git_hash="",
    )
    write_metadata(folder, metadata)


def import_directory(source: Path, output: Path, flow: FlowConfig | None = None) -> dict[str, Any]:
    """Run `import_hf`; its summary."""
    run = load("import_hf", f"source={source}", f"output={output}")
    if flow is not None:
        run.flow = flow
    importer.run(run)
    return json.loads((output / "summary.json").read_text())


def export_checkpoint(checkpoint: Path, output: Path, *overrides: str) -> dict[str, Any]:
    """Run `export_hf`; its summary."""
    exporter.run(load("export_hf", f"checkpoint={checkpoint}", f"output={output}", *overrides))
    return json.loads((output / "summary.json").read_text())
