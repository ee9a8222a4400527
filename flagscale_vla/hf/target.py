"""The name table in each form that is exported: the same rows under other names, and for LeRobot in other places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flagscale_vla.config.checks import check
from flagscale_vla.config.exchange import ExportForm
from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.hf.forms import Row
from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.source import BACKBONE
from flagscale_vla.hf.spelling import old_name
from flagscale_vla.hf.table import OUTPUT_LAYER, name_table

PLAIN = {
    VisionKind.qwen2_5_vl: ExportForm.qwen2_5_vl,
    VisionKind.qwen2_vl: ExportForm.qwen2_vl,
    VisionKind.internvit: ExportForm.internvl,
}
"""The plain form of each family of models."""
VOCABULARY = ("language.embedding.word_embeddings.weight", "language.output_layer.weight")
"""Tensors of ours with a row for each token id."""
EMBEDDING = "model.language_model.embed_tokens.weight"
PERIODS = (4e-3, 4.0)
"""EO-1's and LeRobot's periods of the time embedding; EO-1's code cannot be told others."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The same rows, some of them in other places."""

    places: tuple[tuple[int, int], ...]
    """(row of ours, row of theirs): a permutation of a few rows"""

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        return _move(theirs[0], [(there, here) for here, there in self.places])

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        return [_move(ours, self.places)]


def _move(tensor: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    moved = tensor.clone()
    sources, targets = zip(*places, strict=True)
    moved[torch.tensor(targets)] = tensor[torch.tensor(sources)]
    return moved


def resolve(form: ExportForm, model: ModelConfig) -> ExportForm:
    """The form that is meant, once it is found to fit the model; `plain` is its family's.

    Raises:
        ConfigError: the form is another family's, or cannot express this model.
    """
    plain = PLAIN[model.vision.kind]
    if form in (ExportForm.plain, plain):
        return plain
    rule = f"the checkpoint's model is {model.vision.kind.value}"
    ok = form in (ExportForm.eo1, ExportForm.lerobot_eo1) and plain is ExportForm.qwen2_5_vl
    check(ok, "form", form.value, rule, plain.value)
    periods = (model.flow.min_period, model.flow.max_period)
    rule = f"EO-1's code embeds time with periods {PERIODS}; this model has {periods}"
    check(form is not ExportForm.eo1 or periods == PERIODS, "form", form.value, rule, "lerobot_eo1")
    return form


def target_rows(form: ExportForm, model: ModelConfig, places: tuple[tuple[int, int], ...]) -> list[Row]:
    """Rows of a form: those of the vision-language model, then those of the flow head.

    Args:
        form: as `resolve` gives it.
        model: its sizes.
        places: for LeRobot, where the rows of token ids move to.
    """
    backbone, head = name_table(model), head_table(model)
    if form is ExportForm.lerobot_eo1:
        backbone = [replace(row, form=Moved(places)) if row.ours in VOCABULARY else row for row in backbone]
        backbone = _renamed(backbone, tied_name) if model.language.tied else backbone
        return [*_renamed(backbone, f"model.{BACKBONE}".__add__), *_renamed(head, "model.".__add__)]
    start = BACKBONE if form is ExportForm.eo1 else ""
    return [*_renamed(backbone, lambda name: start + old_name(model, name)), *head]


def tied_name(name: str) -> str:
    """LeRobot keeps a tied embedding under the output layer's name."""
    return OUTPUT_LAYER if name == EMBEDDING else name


def _renamed(rows: list[Row], rename: Callable[[str], str]) -> list[Row]:
    return [replace(row, theirs=tuple(rename(name) for name in row.theirs)) for row in rows]
