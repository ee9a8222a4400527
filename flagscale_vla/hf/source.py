"""The tensors of a Hugging Face directory: one safetensors file or several with an index, read one tensor at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEAD_FILE = "flow_head.safetensors"
"""Where our own exports of a plain vision-language model put the flow head, which `transformers` does not know."""
BACKBONE = "vlm_backbone."
"""How EO-1's names of the vision-language model inside it begin."""
FLOATS = ("BF16", "F16", "F32")
"""safetensors' spelling of what weights may be stored as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """One tensor where it lies."""

    name: str
    """as the file spells it"""
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' spelling"""

    def __str__(self) -> str:
        return f"tensor {self.name} in {self.file}"

    def read(self) -> Tensor:
        """The tensor, read-only: pages of its file, which are given back with it, so that no other's are ever held.

        Raises:
            ValueError: naming the file, where it is damaged.
        """
        try:
            with safe_open(self.file, framework="pt") as opened:
                return opened.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self} cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def source_config(source: Path) -> dict[str, Any]:
    """`config.json`, of an EO-1 directory that of the vision-language model inside it.

    Raises:
        ValueError: there is none.
    """
    config = read_json(source / "config.json")
    return config | {"model_type": "qwen2_5_vl"} if config.get("model_type") == "eo1" else config


def list_tensors(folder: Path) -> dict[str, FileTensor]:
    """Every tensor of a directory by its name in the files; only their headers are read.

    Raises:
        ValueError: no weights, a file that the index names is missing or damaged, a tensor is in two files or is not
            where the index says, or is no floating-point weight. Names the tensor and the file.
    """
    found: dict[str, FileTensor] = {}
    head = folder / HEAD_FILE
    for file in weight_files(folder) + ([head] if head.is_file() else []):
        for tensor in _tensors_of(file):
            if tensor.name in found:
                raise ValueError(f"{tensor} is in {found[tensor.name].file} too: which of them counts?")
            found[tensor.name] = tensor
    _check_index(folder, found)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a directory's weights.

    Raises:
        ValueError: there are none.
    """
    if (folder / INDEX_FILE).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    raise ValueError(f"{folder} holds no weights: there is neither {WEIGHTS_FILE} nor {INDEX_FILE} in it")


def _weight_map(folder: Path) -> dict[str, str]:
    content = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{folder / INDEX_FILE} has no weight_map from tensor names to files")
    outside = [name for name in content.values() if Path(name).name != name]
    if outside:
        raise ValueError(f"{folder / INDEX_FILE} names {outside[0]}, which is not a file of this folder")
    return content


def _tensors_of(file: Path) -> list[FileTensor]:
    if not file.is_file():
        raise ValueError(f"{file} is missing: {INDEX_FILE} names it")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            tensors = [
                FileTensor(name=name, file=file, shape=tuple(part.get_shape()), dtype=part.get_dtype())
                for name, part in slices.items()
            ]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from error
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor} is {tensor.dtype}; weights must be one of {', '.join(FLOATS)}, not quantized")
    return tensors


def _check_index(folder: Path, found: dict[str, FileTensor]) -> None:
    if not (folder / INDEX_FILE).is_file():
        return
    wanted = _weight_map(folder)
    for name, file in wanted.items():
        if name not in found or found[name].file.name != file:
            raise ValueError(f"tensor {name} is missing from {folder / file}: {INDEX_FILE} says that it is there")
    for tensor in found.values():
        if tensor.name not in wanted and tensor.file.name != HEAD_FILE:
            raise ValueError(f"{tensor} is not in {INDEX_FILE}, so other readers would never see it")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit, NaN among them."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
