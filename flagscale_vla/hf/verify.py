"""Whether an export that was just written is what it should be: read back from disk, and un-mapped bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from flagscale_vla.config.exchange import ExportForm
from flagscale_vla.hf.checkpoint import Checkpoint
from flagscale_vla.hf.configs import model_of
from flagscale_vla.hf.forms import Row
from flagscale_vla.hf.processor import ROBOT_TOKENS, SPECIAL
from flagscale_vla.hf.source import list_tensors, read_json, same_bits, source_config

Read = Callable[[Checkpoint], Tensor]
"""Gives a tensor of ours in the dtype that it was written in."""


def verify_export(form: ExportForm, checkpoint: Checkpoint, folder: Path, expected: Sequence[tuple[Row, Read]]) -> None:
    """Compare an export with the checkpoint.

    Raises:
        ValueError: a tensor is missing, too many or different, or `config.json` describes another model or tokenizer.
    """
    found = list_tensors(folder)
    names = {name for row, _ in expected for name in row.theirs}
    if found.keys() != names:
        raise ValueError(f"{folder}: tensor {min(found.keys() ^ names)} is missing or too many after writing")
    for row, read in tqdm(expected, desc="verify", unit="tensor", disable=None):
        if not same_bits(row.form.ours([found[name].read() for name in row.theirs]), read(checkpoint)):
            raise ValueError(f"{folder}: {', '.join(row.theirs)} differ from {row.ours} in {checkpoint.folder}")
    _verify_config(form, checkpoint, folder)


def _verify_config(form: ExportForm, checkpoint: Checkpoint, folder: Path) -> None:
    """See that `config.json` gives back the model's sizes, and the tokenizer its ids."""
    lerobot = form is ExportForm.lerobot_eo1
    config = read_json(folder / "config.json")["vlm_config"] if lerobot else source_config(folder)
    model = checkpoint.model
    sections = model.language.mrope_sections
    read = model_of(config, model.flow, model.name)
    # Files of a model whose positions are plain numbers do not say how its frequencies are shared among axes.
    if replace(read, language=replace(read.language, mrope_sections=sections)) != model:
        raise ValueError(f"{folder}/config.json describes another model than {checkpoint.folder}/config.yaml")
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for key in (SPECIAL | ROBOT_TOKENS).keys() & config.keys():
        if config[key] is not None and written.id_to_token(config[key]) is None:
            raise ValueError(f"{folder}/config.json: {key}={config[key]} is no id of the tokenizer.json beside it")
    size = 1 + max(written.get_vocab(with_added_tokens=True).values())
    if size > model.language.vocab:
        raise ValueError(f"{folder}/tokenizer.json has {size} ids, the model has {model.language.vocab} rows")
