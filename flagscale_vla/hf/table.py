"""Which tensor of Hugging Face's Qwen2.5-VL is which of ours, and how one is made of the other.

Each row names one tensor of ours and the one, two or three of theirs that it holds. Whole tensors only: how a tensor
is split over ranks is the checkpoint's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flagscale_vla.config.model import PATCH_FRAMES, PATCH_PIXELS, PATCH_WIDTH, LanguageConfig, ModelConfig


class Form(Protocol):
    """How one tensor of ours holds some of theirs."""

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""


@dataclass(frozen=True, slots=True)
class Same:
    """The same tensor under another name."""

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        return theirs[0]

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        return [ours]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Theirs one below the other: gate and up projection."""

    count: int

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        return torch.cat(theirs)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        return list(ours.chunk(self.count))


@dataclass(frozen=True, slots=True)
class Grouped:
    """Query, key and value, one group of heads after the other, as Megatron-core splits them over tensor ranks.

    With `fused` their side is one tensor too: all queries, then all keys, then all values.
    """

    heads: int
    groups: int
    head_dim: int
    fused: bool

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        parts = self._split(theirs[0]) if self.fused else theirs
        grouped = [part.reshape(self.groups, -1, *part.shape[1:]) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        grouped = ours.reshape(self.groups, -1, *ours.shape[1:])
        sizes = [self.heads // self.groups * self.head_dim, self.head_dim, self.head_dim]
        parts = [part.flatten(0, 1) for part in grouped.split(sizes, dim=1)]
        return [torch.cat(parts)] if self.fused else parts

    def _split(self, fused: Tensor) -> list[Tensor]:
        keys = self.groups * self.head_dim
        return list(fused.split([self.heads * self.head_dim, keys, keys]))


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution whose stride is its kernel: a linear layer over flattened patches."""

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        return theirs[0].reshape(len(theirs[0]), PATCH_WIDTH)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        return [ours.reshape(len(ours), -1, PATCH_FRAMES, PATCH_PIXELS, PATCH_PIXELS)]


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of ours, and theirs that it holds."""

    ours: str
    theirs: tuple[str, ...]
    form: Form


def name_table(model: ModelConfig) -> list[Row]:
    """Every tensor of Qwen2.5-VL, once on each side; the flow head is not theirs."""
    rows = _vision_ends(model) + _language_ends(model.language)
    for layer in range(model.vision.layers):
        rows += _vision_layer(model, layer)
    for layer in range(model.language.layers):
        rows += _language_layer(model.language, layer)
    return rows


def _both(ours: str, theirs: tuple[str, ...], form: Form) -> list[Row]:
    """Weight and bias."""
    return [Row(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), form) for kind in ("weight", "bias")]


def _vision_ends(model: ModelConfig) -> list[Row]:
    ours, theirs = "vision", "model.visual"
    return [
        Row(f"{ours}.patch_embed.weight", (f"{theirs}.patch_embed.proj.weight",), Convolution()),
        Row(f"{ours}.merger.norm.weight", (f"{theirs}.merger.ln_q.weight",), Same()),
        *_both(f"{ours}.merger.linear_fc1", (f"{theirs}.merger.mlp.0",), Same()),
        *_both(f"{ours}.merger.linear_fc2", (f"{theirs}.merger.mlp.2",), Same()),
    ]


def _vision_layer(model: ModelConfig, layer: int) -> list[Row]:
    ours, theirs = f"vision.blocks.layers.{layer}", f"model.visual.blocks.{layer}"
    heads = model.vision.heads
    qkv = Grouped(heads, heads, model.vision.hidden // heads, fused=True)
    return [
        Row(f"{ours}.input_layernorm.weight", (f"{theirs}.norm1.weight",), Same()),
        Row(f"{ours}.pre_mlp_layernorm.weight", (f"{theirs}.norm2.weight",), Same()),
        *_both(f"{ours}.self_attention.linear_qkv", (f"{theirs}.attn.qkv",), qkv),
        *_both(f"{ours}.self_attention.linear_proj", (f"{theirs}.attn.proj",), Same()),
        *_both(f"{ours}.mlp.linear_fc1", (f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj"), Stacked(2)),
        *_both(f"{ours}.mlp.linear_fc2", (f"{theirs}.mlp.down_proj",), Same()),
    ]


def _language_ends(model: LanguageConfig) -> list[Row]:
    ours, theirs = "language", "model.language_model"
    rows = [
        Row(f"{ours}.embedding.word_embeddings.weight", (f"{theirs}.embed_tokens.weight",), Same()),
        Row(f"{ours}.decoder.final_layernorm.weight", (f"{theirs}.norm.weight",), Same()),
    ]
    if not model.tied:
        rows.append(Row(f"{ours}.output_layer.weight", ("lm_head.weight",), Same()))
    return rows


def _language_layer(model: LanguageConfig, layer: int) -> list[Row]:
    ours, theirs = f"language.decoder.layers.{layer}", f"model.language_model.layers.{layer}"
    qkv = Grouped(model.heads, model.kv_heads, model.head_dim, fused=False)
    attention = tuple(f"{theirs}.self_attn.{part}_proj" for part in "qkv")
    gate_up = tuple(f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up"))
    return [
        Row(f"{ours}.input_layernorm.weight", (f"{theirs}.input_layernorm.weight",), Same()),
        Row(f"{ours}.pre_mlp_layernorm.weight", (f"{theirs}.post_attention_layernorm.weight",), Same()),
        *_both(f"{ours}.self_attention.linear_qkv", attention, qkv),
        Row(f"{ours}.self_attention.linear_proj.weight", (f"{theirs}.self_attn.o_proj.weight",), Same()),
        Row(f"{ours}.mlp.linear_fc1.weight", gate_up, Stacked(2)),
        Row(f"{ours}.mlp.linear_fc2.weight", (f"{theirs}.mlp.down_proj.weight",), Same()),
    ]


def to_ours(model: ModelConfig, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, of a whole Hugging Face state dict.

    Raises:
        ValueError: naming the tensors that are missing from it.
    """
    table = name_table(model)
    missing = [name for row in table for name in row.theirs if name not in theirs]
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, first {missing[:3]}: not a Qwen2.5-VL of these sizes")
    return {row.ours: row.form.ours([theirs[name] for name in row.theirs]) for row in table}


def to_theirs(model: ModelConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's tensors, of ours; the flow head's are left out."""
    named: dict[str, Tensor] = {}
    for row in name_table(model):
        named.update(zip(row.theirs, row.form.theirs(ours[row.ours]), strict=True))
    return named
