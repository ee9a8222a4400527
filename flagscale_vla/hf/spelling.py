"""Two spellings of Hugging Face's names: as `transformers` has them since 4.52, and as older files on the hub do.

The name table speaks the new one.
"""

from __future__ import annotations

from flagscale_vla.config.model import ModelConfig

OLD_TO_NEW = (
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
    ("lm_head.", "lm_head."),
)
"""Beginnings of Qwen's names, old and new."""


def canonical_name(name: str) -> str:
    """The new spelling of a name in either.

    Raises:
        ValueError: where it begins as no name of these models does.
    """
    if name.startswith(tuple(new for _, new in OLD_TO_NEW)):
        return name
    for old, new in OLD_TO_NEW:
        if name.startswith(old):
            return new + name.removeprefix(old)
    known = sorted({start for pair in OLD_TO_NEW for start in pair})
    raise ValueError(f"tensor {name}: a name of these models begins with one of {known}")


def old_name(model: ModelConfig, name: str) -> str:
    """The old spelling, for models of this kind, of a name in the new one.

    Raises:
        ValueError: where the name is not in the new spelling.
    """
    for old, new in OLD_TO_NEW:
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise ValueError(f"tensor {name}: not in the new spelling, where names begin with {[new for _, new in OLD_TO_NEW]}")
