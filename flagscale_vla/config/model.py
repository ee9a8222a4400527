"""The sizes of a model: Qwen2.5-VL's vision transformer and language model, and EO-1's flow head."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive

PATCH_PIXELS = 14
"""Side of a vision patch in pixels."""
PATCH_MERGE = 2
"""Patches merged along each side into one language token."""
PATCH_FRAMES = 2
"""Frames in one patch; a still image is repeated."""
PATCH_WIDTH = 3 * PATCH_FRAMES * PATCH_PIXELS * PATCH_PIXELS
"""Values in a flattened patch: 1176."""


@dataclass(slots=True, kw_only=True)
class VisionConfig:
    """Qwen2.5-VL's vision transformer (Qwen2.5-VL report, section 2.1.1)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    window_pixels: int
    """side of an attention window, in pixels of the resized image"""
    full_attention_layers: list[int]
    """layers, from 0, that attend over the whole image instead of a window"""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads"):
            check_positive(f"model.vision.{name}", self.__getattribute__(name))
        head_dim = self.hidden // self.heads
        ok = self.hidden % self.heads == 0 and head_dim % 4 == 0
        rule = f"hidden/heads must be a multiple of 4 for 2-D rotary positions; hidden is {self.hidden}"
        check(ok, "model.vision.heads", self.heads, rule, max(1, self.hidden // 32))
        side = PATCH_PIXELS * PATCH_MERGE
        ok = self.window_pixels > 0 and self.window_pixels % side == 0
        check(ok, "model.vision.window_pixels", self.window_pixels, f"must be a positive multiple of {side}", 4 * side)
        ok = all(0 <= layer < self.layers for layer in self.full_attention_layers)
        rule = f"every entry must be a layer, from 0 to {self.layers - 1}"
        check(ok, "model.vision.full_attention_layers", self.full_attention_layers, rule, [self.layers - 1])


@dataclass(slots=True, kw_only=True)
class LanguageConfig:
    """Qwen2.5's decoder with multimodal rotary positions (Qwen2-VL report, section 2.1)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    """rows of the embedding, padding rows included"""
    rope_theta: float
    mrope_sections: list[int]
    """rotary frequencies given to time, height and width; together half a head"""
    norm_eps: float
    tied: bool
    """whether the output layer is the embedding"""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab", "rope_theta", "norm_eps"):
            check_positive(f"model.language.{name}", self.__getattribute__(name))
        ok = self.hidden % (2 * self.heads) == 0
        rule = f"hidden/heads must be an even number for rotary positions; hidden is {self.hidden}"
        check(ok, "model.language.heads", self.heads, rule, 1)
        ok = self.heads % self.kv_heads == 0
        check(ok, "model.language.kv_heads", self.kv_heads, f"must divide heads={self.heads}", 1)
        half = self.head_dim // 2
        sections = self.mrope_sections
        ok = len(sections) == 3 and min(sections) > 0 and sum(sections) == half
        third = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
        rule = f"must be three counts above zero that add up to half a head, {half}"
        check(ok, "model.language.mrope_sections", self.mrope_sections, rule, third)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


@dataclass(slots=True, kw_only=True)
class FlowConfig:
    """EO-1's flow-matching head (EO-1 report, section 3; pi0, appendix B, for the time embedding)."""

    width: int
    """padded width A of states and actions"""
    output_layers: int
    """linear layers that turn a hidden state into a velocity"""
    min_period: float
    max_period: float

    def __post_init__(self) -> None:
        for name in ("width", "output_layers", "min_period", "max_period"):
            check_positive(f"model.flow.{name}", self.__getattribute__(name))
        ok = self.max_period > self.min_period
        check(ok, "model.flow.max_period", self.max_period, f"must exceed min_period={self.min_period}", 4.0)


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """A whole vision-language-action model."""

    name: str
    vision: VisionConfig
    language: LanguageConfig
    flow: FlowConfig
