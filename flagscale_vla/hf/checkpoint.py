"""A checkpoint as the exporter sees it: weights read one tensor at a time, and all that says how samples are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from flagscale_vla.config.checkpoint_files import file_digest, read_metadata, verify_digests
from flagscale_vla.config.checkpoints import CONFIG, METADATA, RECIPE, WEIGHTS, find_checkpoint
from flagscale_vla.config.model import ModelConfig
from flagscale_vla.config.stored import read_model
from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.source import read_json
from flagscale_vla.hf.table import name_table
from flagscale_vla.mcore.storage import StoredTensors

HF = "hf"
"""Folder of a checkpoint with the small files of the directory that it was imported from."""
RECIPE_KEYS = ("embodiments", "statistics", "image", "action", "width", "system_prompt")
RECIPE_VERSION = 1
MAIN = "main/"
"""Under this the float32 weights of a run that computes in bfloat16 are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is exported."""

    folder: Path
    step: int
    model: ModelConfig
    tensors: StoredTensors
    has_head: bool
    tokenizer: Tokenizer
    recipe: Mapping[str, Any] | None
    """`recipe.json` of a trained checkpoint; None of an imported one"""
    hf: Path | None
    """small files of the directory that it was imported from"""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """The checkpoint at a path, or the newest of the run there, with every small file verified.

        Raises:
            ConfigError: there is none.
            ValueError: it is damaged, or its tensors are not its model's; names the file or the tensor.
        """
        folder = find_checkpoint(path)
        metadata = read_metadata(folder)
        verify_digests(folder, metadata)
        model = read_model(folder / CONFIG)
        tensors = StoredTensors.open(folder / WEIGHTS)
        recipe = folder / RECIPE
        return cls(
            folder=folder,
            step=metadata.step,
            model=model,
            tensors=tensors,
            has_head=_check_names(model, tensors, folder),
            tokenizer=_read_tokenizer(recipe / "tokenizer.json"),
            recipe=_read_recipe(recipe / "recipe.json"),
            hf=folder / HF if (folder / HF).is_dir() else None,
        )

    @property
    def identity(self) -> dict[str, str]:
        """Tells this checkpoint from others."""
        return {"checkpoint": str(self.folder.resolve()), "metadata_sha256": file_digest(self.folder / METADATA)}

    def source_of(self, name: str, dtype: torch.dtype) -> str:
        """Under which name the most exact values of a tensor are stored that are wanted as `dtype`."""
        main = MAIN + name
        return main if dtype is torch.float32 and main in self.tensors else name

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A whole tensor as `dtype`.

        Raises:
            DamagedError: naming the tensor and the file.
        """
        return self.tensors.read(self.source_of(name, dtype)).to(dtype)


def _check_names(model: ModelConfig, tensors: StoredTensors, folder: Path) -> bool:
    """See that a checkpoint holds its model's tensors in their shapes; whether the flow head is among them.

    Raises:
        ValueError: naming what is missing, left over, or of another shape.
    """
    stored = set(tensors.weights)
    head = head_table(model)
    has_head = any(row.ours in stored for row in head)
    rows = name_table(model) + (head if has_head else [])
    expected = {row.ours: row.shape for row in rows}
    for what, names in (("is missing", expected.keys() - stored), ("has no place in it", stored - expected.keys())):
        if names:
            raise ValueError(f"{folder}: tensor {min(names)} {what} (and {len(names) - 1} more); model {model.name}")
    for name, shape in expected.items():
        if tensors.shape(name) != shape:
            raise ValueError(f"{folder}: tensor {name} has shape {tensors.shape(name)}, its model's has {shape}")
    return has_head


def _read_tokenizer(path: Path) -> Tokenizer:
    read_json(path)
    return Tokenizer.from_file(str(path))


def _read_recipe(path: Path) -> dict[str, Any] | None:
    """A recipe's JSON.

    Raises:
        ValueError: it is of another version or lacks a part.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("version") != RECIPE_VERSION:
        raise ValueError(f"{path} has version {content.get('version')}; this code reads {RECIPE_VERSION}")
    missing = [key for key in RECIPE_KEYS if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return content
