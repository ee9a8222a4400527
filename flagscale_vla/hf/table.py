"""Which tensor of Hugging Face's model is which of ours, and how one is made of the other: one table for both ways.

Each row names one tensor of ours and the one, two or three of theirs that it holds. Whole tensors only: how a tensor
is split over ranks is the checkpoint's business. Import, export and the printed map read the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.hf.forms import Row
from flagscale_vla.hf.internvl import intern_rows
from flagscale_vla.hf.qwen import language_rows, vision_rows
from flagscale_vla.hf.spelling import canonical_name

OUTPUT_LAYER = "lm_head.weight"


def name_table(model: ModelConfig) -> list[Row]:
    """Every tensor of the vision-language model, once on each side; the flow head is not theirs."""
    vision = intern_rows if model.vision.kind is VisionKind.internvit else vision_rows
    return vision(model) + language_rows(model.language)


def match_names(model: ModelConfig, names: Iterable[str]) -> dict[str, str]:
    """Which of the given names, in either spelling, is which of the table's: {new spelling: given}.

    A tied model's file may hold the output layer too; it is among the answers, and whoever reads it must see to it
    that it equals the embedding.

    Raises:
        ValueError: naming the tensors that are missing, that the model has no place for, or that are there twice.
    """
    given: dict[str, str] = {}
    for name in names:
        new = canonical_name(name)
        if new in given:
            raise ValueError(f"tensors {given[new]} and {name} are the same one in two spellings")
        given[new] = name
    expected = {name for row in name_table(model) for name in row.theirs}
    _refuse(model, "are missing", sorted(expected - given.keys()))
    allowed = expected | {OUTPUT_LAYER} if model.language.tied else expected
    _refuse(model, "have no place in it", sorted(given[new] for new in given.keys() - allowed))
    return given


def _refuse(model: ModelConfig, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"this is not the model {model.name}: tensors {what}: {', '.join(names[:5])}{more}")


def to_ours(model: ModelConfig, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, of a whole Hugging Face state dict in either spelling.

    Raises:
        ValueError: naming the tensors that are missing from it or have no place in the model.
    """
    given = match_names(model, theirs)
    return {row.ours: row.form.ours([theirs[given[name]] for name in row.theirs]) for row in name_table(model)}


def to_theirs(model: ModelConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's tensors in the new spelling, of ours; the flow head's are left out."""
    named: dict[str, Tensor] = {}
    for row in name_table(model):
        named.update(zip(row.theirs, row.form.theirs(ours[row.ours]), strict=True))
    return named
