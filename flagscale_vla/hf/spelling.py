"""Two spellings of Hugging Face's names: as `transformers` has them since 4.52, and as older files on the hub do.

The name table speaks the new one.
"""

from __future__ import annotations

from flagscale_vla.config.model import ModelConfig, VisionKind

QWEN = (
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
    ("lm_head.", "lm_head."),
)
INTERNVL = (
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
"""Beginnings of names, old and new."""

NEW = tuple(sorted({new for _, new in QWEN + INTERNVL}))


def canonical_name(name: str) -> str:
    """The new spelling of a name in either, of any kind of model.

    Raises:
        ValueError: where it begins as no name of these models does.
    """
    if name.startswith(NEW):
        return name
    for old, new in INTERNVL + QWEN:
        if name.startswith(old):
            return new + name.removeprefix(old)
    known = ", ".join(sorted({start for pair in QWEN + INTERNVL for start in pair}))
    raise ValueError(f"tensor {name}: a name of these models begins with one of {known}")


def old_name(model: ModelConfig, name: str) -> str:
    """The old spelling, for models of this kind, of a name in the new one.

    Raises:
        ValueError: where the name is not in the new spelling.
    """
    starts = INTERNVL if model.vision.kind is VisionKind.internvit else QWEN
    for old, new in starts:
        if name.startswith(new):
            return old + name.removeprefix(new)
    known = ", ".join(new for _, new in starts)
    raise ValueError(f"tensor {name}: a name of this model in the new spelling begins with one of {known}")
