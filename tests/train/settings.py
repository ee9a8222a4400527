"""Settings of training runs that take seconds."""

from __future__ import annotations

from pathlib import Path

from flagscale_vla.config.runs import TrainRun
from tests.settings import load_training

SMALL = (
    "model.vision.layers=2",
    "model.vision.hidden=64",
    "model.vision.intermediate=96",
    "model.vision.heads=2",
    "model.vision.full_attention_layers=[1]",
    "model.language.layers=2",
    "model.language.hidden=64",
    "model.language.intermediate=96",
    "model.language.heads=2",
    "model.language.kv_heads=2",
    "data.workers=0",
    "data.pack_length=512",
    "data.image.max_pixels=3136",
    "platform.threads=1",
    "platform.device=cpu",
    "platform.matmul=highest",
    "global_packs=1",
    "report.every=1",
    "report.tensorboard=false",
    "report.samples=1",
)
"""Overrides of `train_tiny_action` that make a model of two small layers."""


def small_run(output: Path, *overrides: str) -> TrainRun:
    """A checked run of the small model that leaves its results in `output`."""
    return load_training("train_tiny_action", *SMALL, f"output={output}", *overrides)
