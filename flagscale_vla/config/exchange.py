"""Settings of the two jobs that trade weights with Hugging Face's form."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive
from flagscale_vla.config.model import FlowConfig


class ExportForm(Enum):
    """Whose names, ids and files an export has."""

    plain = "plain"
    """the model family's own, which `transformers` loads"""
    qwen2_5_vl = "qwen2_5_vl"
    """`plain`, of a model that must be Qwen2.5-VL"""
    qwen2_vl = "qwen2_vl"
    """`plain`, of a model that must be Qwen2-VL"""
    internvl = "internvl"
    """`plain`, of a model that must be InternVL"""
    eo1 = "eo1"
    """EO-1's public code"""
    lerobot_eo1 = "lerobot_eo1"
    """LeRobot's policy `eo1`"""


class ExportDtype(Enum):
    """What weights are written as."""

    stored = "stored"
    """as the checkpoint holds them"""
    bfloat16 = "bfloat16"
    float32 = "float32"


@dataclass(slots=True, kw_only=True)
class ImportRun:
    """Making a checkpoint of a Hugging Face directory."""

    output: str
    source: str
    """folder with `config.json`, `tokenizer.json` and safetensors files, one or several with an index"""
    flow: FlowConfig
    """the flow head that training is to add; one that is in the source must have these sizes"""

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/import_hf")
        rule = "must name a folder with config.json and safetensors files"
        check(bool(self.source), "source", self.source or "''", rule, "data/Qwen2.5-VL-3B-Instruct")


@dataclass(slots=True, kw_only=True)
class ExportRun:
    """Writing a checkpoint as a Hugging Face directory."""

    output: str
    checkpoint: str
    """a checkpoint, or a run's output, whose newest checkpoint is taken"""
    form: ExportForm
    dtype: ExportDtype
    max_shard_bytes: int
    """most bytes of tensors in one safetensors file; LeRobot reads a single one, whatever its size"""
    denoise_steps: int
    """Euler steps that EO-1's and LeRobot's code make by default"""
    robot: str
    """lerobot_eo1: the robot whose statistics go along; may be empty where there is only one"""
    image_sides: list[int]
    """lerobot_eo1: height and width of the cameras' pictures, which LeRobot wants to be told"""
    vlm_base: str
    """lerobot_eo1: where LeRobot finds the processor: a folder or hub name; empty for the export's own folder"""

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/export_hf")
        rule = "must name a checkpoint or a run's output folder"
        check(bool(self.checkpoint), "checkpoint", self.checkpoint or "''", rule, "runs/train_tiny_action")
        for name in ("max_shard_bytes", "denoise_steps"):
            check_positive(name, self.__getattribute__(name))
        ok = len(self.image_sides) == 2 and min(self.image_sides) > 0
        check(ok, "image_sides", self.image_sides, "must be a height and a width above zero", [480, 640])
