"""Reading back, from the settings saved in a checkpoint, what a later job needs of them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from flagscale_vla.config.model import ModelConfig


def read_model(config: Path) -> ModelConfig:
    """The model's sizes in a checkpoint's `config.yaml`, checked.

    Raises:
        ConfigError: where they cannot be a model.
    """
    stored = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(config).model)
    model = OmegaConf.to_object(stored)
    assert isinstance(model, ModelConfig)
    return model
