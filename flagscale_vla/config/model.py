"""The sizes of a model: Qwen2.5-VL, Qwen2-VL or InternVL3, and EO-1's flow head."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive

PATCH_PIXELS = 14
"""Side of a vision patch in pixels."""
PATCH_MERGE = 2
"""Patches merged along each side into one language token."""
PATCH_FRAMES = 2
"""Frames in one patch of Qwen's; a still image is repeated."""
PATCH_WIDTH = 3 * PATCH_FRAMES * PATCH_PIXELS * PATCH_PIXELS
"""Values in a flattened patch of Qwen's: 1176."""


class VisionKind(Enum):
    """A family of vision towers, and with it of models."""

    qwen2_5_vl = "qwen2_5_vl"
    """Qwen2.5-VL: RMS norms, gated MLP, windows in all but a few layers, 2-D rotary positions"""
    qwen2_vl = "qwen2_vl"
    """Qwen2-VL: layer norms, plain MLP, whole images in every layer, 2-D rotary positions"""
    internvit = "internvit"
    """InternVL's InternViT: layer norms, plain MLP, layer scale, a class token, learned positions of square tiles"""


@dataclass(slots=True, kw_only=True)
class VisionConfig:
    """A vision tower. What does not apply to its kind has its neutral value: 0, or an empty list."""

    kind: VisionKind
    layers: int
    hidden: int
    intermediate: int
    heads: int
    window_pixels: int
    """qwen2_5_vl: side of an attention window, in pixels of the resized image"""
    full_attention_layers: list[int]
    """qwen2_5_vl: layers, from 0, that attend over the whole image instead of a window"""
    image_pixels: int
    """internvit: side of every image in pixels; there is a learned position for each of its patches and no other"""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads"):
            check_positive(f"model.vision.{name}", self.__getattribute__(name))
        ok = self.hidden % self.heads == 0 and self.hidden // self.heads % 4 == 0
        rule = (
            f"hidden/heads must be a multiple of 4, for 2-D rotary positions and fast kernels; hidden is {self.hidden}"
        )
        check(ok, "model.vision.heads", self.heads, rule, max(1, self.hidden // 32))
        self._check_windows()
        self._check_tiles()
        ok = self.kind is not VisionKind.qwen2_vl or self.intermediate % self.hidden == 0
        rule = f"must be a multiple of hidden={self.hidden} with kind=qwen2_vl, whose files store their ratio"
        check(ok, "model.vision.intermediate", self.intermediate, rule, 4 * self.hidden)

    def _check_windows(self) -> None:
        side, window, full = PATCH_PIXELS * PATCH_MERGE, self.window_pixels, self.full_attention_layers
        if self.kind is not VisionKind.qwen2_5_vl:
            rule = f"kind={self.kind.value} has no windows"
            check(window == 0, "model.vision.window_pixels", window, rule, 0)
            check(not full, "model.vision.full_attention_layers", full, rule, [])
            return
        ok = window > 0 and window % side == 0
        check(ok, "model.vision.window_pixels", window, f"must be a positive multiple of {side}", 4 * side)
        ok = all(0 <= layer < self.layers for layer in full)
        rule = f"every entry must be a layer, from 0 to {self.layers - 1}"
        check(ok, "model.vision.full_attention_layers", full, rule, [self.layers - 1])

    def _check_tiles(self) -> None:
        side, pixels = PATCH_PIXELS * PATCH_MERGE, self.image_pixels
        if self.kind is not VisionKind.internvit:
            rule = f"kind={self.kind.value} takes images of any size"
            check(pixels == 0, "model.vision.image_pixels", pixels, rule, 0)
            return
        ok = pixels > 0 and pixels % side == 0
        check(ok, "model.vision.image_pixels", pixels, f"must be a positive multiple of {side}", 16 * side)

    @property
    def patch_frames(self) -> int:
        """Frames in a patch: two, or one with InternViT."""
        return 1 if self.kind is VisionKind.internvit else PATCH_FRAMES

    @property
    def patch_width(self) -> int:
        """Values in a flattened patch."""
        return 3 * self.patch_frames * PATCH_PIXELS * PATCH_PIXELS

    @property
    def tile_side(self) -> int:
        """internvit: patches along each side of an image."""
        return self.image_pixels // PATCH_PIXELS


@dataclass(slots=True, kw_only=True)
class LanguageConfig:
    """Qwen2's and Qwen2.5's decoder with multimodal rotary positions (Qwen2-VL report, section 2.1).

    A model whose positions are plain numbers, as InternVL's, gives all three axes the same ones: any sections will do.
    """

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
    max_positions: int
    """length that the weights were made for; exported, and not a limit here"""
    tied: bool
    """whether the output layer is the embedding"""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab", "rope_theta", "norm_eps"):
            check_positive(f"model.language.{name}", self.__getattribute__(name))
        check_positive("model.language.max_positions", self.max_positions)
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
