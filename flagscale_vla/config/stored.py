"""Settings as a checkpoint keeps them: flat, and read back by a later job."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from flagscale_vla.config.model import ModelConfig

Settings = dict[str, object]
"""Dotted key to value."""


def read_model(config: Path) -> ModelConfig:
    """The model's sizes in a checkpoint's `config.yaml`, checked.

    Raises:
        ConfigError: where they cannot be a model.
    """
    stored = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(config).model)
    model = OmegaConf.to_object(stored)
    assert isinstance(model, ModelConfig)
    return model


def flat_settings(run: object) -> Settings:
    """The settings of a config object, dotted keys to values."""
    return flatten(OmegaConf.to_container(OmegaConf.structured(run), enum_to_str=True))


def flatten(tree: object, prefix: str = "") -> Settings:
    """A nested mapping as one of dotted keys; lists stay whole."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    nested = cast(dict[str, object], tree)
    parts = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in nested.items())
    return {key: value for part in parts for key, value in part.items()}
