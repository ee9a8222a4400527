"""The name table: each side hit once, both spellings read, and there and back the identity, for every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flagscale_vla.config.model import ModelConfig
from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.spelling import canonical_name, old_name
from flagscale_vla.hf.table import match_names, name_table, to_ours, to_theirs
from tests.model.peers import peer, state_dict
from tests.model.rows import FAMILIES, settings

FAMILY = pytest.mark.parametrize("family", FAMILIES)


def sides(family: str, tied: bool) -> tuple[ModelConfig, dict[str, Tensor]]:
    model = settings(*FAMILIES[family], f"model.language.tied={tied}").model
    return model, state_dict(peer(model), model)


@FAMILY
@pytest.mark.parametrize("tied", [True, False])
def test_every_name_is_hit_once_and_back_is_the_identity(family: str, tied: bool) -> None:
    model, theirs = sides(family, tied)
    table = name_table(model)
    assert sorted(name for row in table for name in row.theirs) == sorted(theirs)
    assert len({row.ours for row in table}) == len(table)
    ours = to_ours(model, theirs)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {row.ours: row.shape for row in table}
    shapes = {name: shape for row in table for name, shape in zip(row.theirs, row.their_shapes, strict=True)}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    back = to_theirs(model, ours)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


@FAMILY
@pytest.mark.parametrize("tied", [True, False])
def test_old_names_are_read_too(family: str, tied: bool) -> None:
    model, theirs = sides(family, tied)
    older = {old_name(model, name): tensor for name, tensor in theirs.items()}
    assert len(older) == len(theirs)
    assert {canonical_name(old) for old in older} == set(theirs)
    assert not tied or "lm_head.weight" not in older
    ours, ours_of_older = to_ours(model, theirs), to_ours(model, older)
    assert all(torch.equal(ours[name], ours_of_older[name]) for name in ours)


OLD_NAMES = {
    "qwen2_5_vl": {
        "visual.blocks.1.mlp.gate_proj.weight",
        "model.layers.3.self_attn.q_proj.bias",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    },
    "qwen2_vl": {"visual.blocks.1.mlp.fc1.weight", "visual.merger.ln_q.bias", "model.layers.0.mlp.up_proj.weight"},
    "internvl": {
        "vision_tower.encoder.layer.1.lambda_2",
        "vision_tower.embeddings.patch_embeddings.projection.weight",
        "multi_modal_projector.linear_2.bias",
        "language_model.model.layers.0.self_attn.k_proj.weight",
        "language_model.lm_head.weight",
    },
}
"""As files on the hub have them."""


@FAMILY
def test_old_names_are_the_hubs(family: str) -> None:
    model = settings(*FAMILIES[family], "model.language.tied=false").model
    older = {old_name(model, name) for row in name_table(model) for name in row.theirs}
    assert older >= OLD_NAMES[family]


@FAMILY
def test_missing_surplus_and_doubled_tensors_are_named(family: str) -> None:
    model, theirs = sides(family, tied=False)
    names = set(theirs)
    with pytest.raises(ValueError, match=r"tensors are missing: model\.language_model\.norm\.weight$"):
        match_names(model, names - {"model.language_model.norm.weight"})
    with pytest.raises(ValueError, match=r"have no place in it: model\.language_model\.layers\.9\.odd$"):
        match_names(model, names | {"model.language_model.layers.9.odd"})
    with pytest.raises(ValueError, match="are the same one in two spellings"):
        match_names(model, [*names, old_name(model, "model.language_model.norm.weight")])
    with pytest.raises(ValueError, match=r"tensor transformer\.wte\.weight: a name of these models begins with"):
        match_names(model, names | {"transformer.wte.weight"})


def test_a_tied_models_file_may_hold_the_output_layer() -> None:
    model, theirs = sides("qwen2_5_vl", tied=True)
    assert match_names(model, [*theirs, "lm_head.weight"])["lm_head.weight"] == "lm_head.weight"


@pytest.mark.parametrize("output_layers", [1, 2, 3])
def test_the_heads_names_are_eo1s(output_layers: int) -> None:
    table = head_table(settings(f"model.flow.output_layers={output_layers}").model)
    inputs = ["state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out"]
    # Activations stand between the output layers in EO-1's list.
    modules = [*inputs, *(f"action_out_proj.{2 * n}" for n in range(output_layers))]
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert {name for row in table for name in row.theirs} == expected
    assert len(table) == len({row.ours for row in table}) == len(expected)
    assert table[-1].shape == (8,)
