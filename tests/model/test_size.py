"""Counted parameters equal transformers' of the same sizes, and the public models' published numbers."""

from __future__ import annotations

import math

import pytest
import torch

from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.table import name_table
from flagscale_vla.model.size import count_parameters
from tests.model.peers import empty_peer
from tests.model.rows import FAMILIES, public_model, settings

PUBLIC = {
    "3b": 3_754_622_976,
    "7b": 8_292_166_656,
    "32b": 33_452_718_336,
    "72b": 73_410_777_344,
    "qwen2_vl_2b": 2_208_985_600,
    "qwen2_vl_7b": 8_291_375_616,
    "internvl3_1b": 938_193_024,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_have_their_sizes(name: str) -> None:
    model = public_model(name)
    with torch.device("meta"):
        theirs = sum(parameter.numel() for parameter in empty_peer(model).parameters())
    counts = count_parameters(model)
    head = counts.pop("head")
    assert sum(counts.values()) == theirs == PUBLIC[name]
    assert head == sum(math.prod(row.shape) for row in head_table(model))


@pytest.mark.parametrize("name", PUBLIC)
def test_the_name_table_has_the_public_models_shapes(name: str) -> None:
    model = public_model(name)
    with torch.device("meta"):
        theirs = {name: tuple(parameter.shape) for name, parameter in empty_peer(model).named_parameters()}
    rows = name_table(model)
    assert theirs == {name: shape for row in rows for name, shape in zip(row.theirs, row.their_shapes, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_parts_add_up_by_name(family: str, tied: bool) -> None:
    model = settings(*FAMILIES[family], f"model.language.tied={tied}").model
    parts = dict.fromkeys(("vision", "merger", "language", "head"), 0)
    for row in name_table(model) + head_table(model):
        start = "merger" if row.ours.startswith("vision.merger.") else row.ours.split(".")[0]
        parts[start if start in parts else "head"] += math.prod(row.shape)
    assert count_parameters(model) == parts
