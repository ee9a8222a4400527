"""The records that cross rooms: fields with their shapes and dtypes, and nothing else.

Legend: S packed length of one data-parallel rank, T tokens of a sample, N samples in a pack, I images and films, P
vision patches, B bytes, C action chunks, H horizon (steps in a chunk), A padded action width, A0 the robot's own width,
Z states, K codes per chunk.

A slot is the index in `tokens` of the placeholder that an image token, a state or an action step replaces.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A piece of a conversation; `supervised` text is the assistant's and is trained on."""

    text: str
    supervised: bool
    assistant: bool = False
    """whose turn unsupervised text belongs to; supervised text is the assistant's in any case"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One camera frame or picture, still encoded (JPEG or PNG bytes)."""

    name: str
    encoded: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """Frames of a film in order, each still encoded (JPEG or PNG bytes), already sampled at `fps` frames a second."""

    name: str
    frames: tuple[bytes, ...]
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The robot's own state, f32[A0], in its own units."""

    values: NDArray[np.float32]
    robot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What to do next: values f32[H, A0] in the robot's own units; valid bool[H] is false past the episode's end."""

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    robot: str


Segment = Text | Image | Video | State | Action


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSample:
    """One training example as a shard holds it; `segments` in reading order, `key` is `shard.tar/member`."""

    key: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training example as the model reads it."""

    key: str
    tokens: Tensor
    """i64[T]"""
    labels: Tensor
    """i64[T], already shifted by one; -100 where nothing is supervised"""
    positions: Tensor
    """i64[3, T] multimodal rotary positions (time, height, width)"""
    pixels: Tensor
    """u8[B] frames of all pictures and films, each RGB [h, w, 3] on its grid; the model cuts and normalises them"""
    frames: Tensor
    """i64[I] frames of each: 1 is a picture"""
    grid: Tensor
    """i64[I, 3] patches of each along (time, height, width); two frames are one step of time, an odd last one too"""
    image_slots: Tensor
    """i64[P/4] where each merged 2x2 group of patches goes, in the order the vision tower gives them"""
    actions: Tensor
    """f32[C, H, A] normalised, zero-padded"""
    action_valid: Tensor
    """bool[C, H, A] true where the flow loss is taken"""
    noise: Tensor
    """f32[C, H, A] standard normal, drawn from the sample's key"""
    time: Tensor
    """f32[C] flow time; 1 is pure noise"""
    action_slots: Tensor
    """i64[C, H]"""
    states: Tensor
    """f32[Z, A] normalised, zero-padded"""
    state_slots: Tensor
    """i64[Z]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Whole samples laid end to end and padded to S: one micro-batch of one data-parallel rank.

    Fields are those of `Sample`, concatenated. The padding is a document of its own, unsupervised. So that every
    micro-batch touches every trainable part, a row without images, states or actions carries one dummy of each kind
    it lacks (an image of 2x2 patches, a zero state, a zero chunk), last of its kind, with slots of -1: placed nowhere.
    """

    tokens: Tensor
    """i64[S]"""
    labels: Tensor
    """i64[S]; -100 where nothing is supervised"""
    positions: Tensor
    """i64[3, S]"""
    cu_seqlens: Tensor
    """i32[N+1], or i32[N+2] where there is padding; always on the CPU"""
    pixels: Tensor
    """u8[B]"""
    frames: Tensor
    """i64[I]; always on the CPU"""
    grid: Tensor
    """i64[I, 3]; always on the CPU"""
    image_slots: Tensor
    """i64[P/4] into the whole row of S tokens; -1 for the dummy image's"""
    actions: Tensor
    """f32[C, H, A]"""
    action_valid: Tensor
    """bool[C, H, A]"""
    noise: Tensor
    """f32[C, H, A]"""
    time: Tensor
    """f32[C]"""
    action_slots: Tensor
    """i64[C, H] into the whole row of S tokens"""
    states: Tensor
    """f32[Z, A]"""
    state_slots: Tensor
    """i64[Z] into the whole row of S tokens"""
    keys: tuple[str, ...]
    """where each of the N samples came from"""
    num_labels: int
    """supervised tokens in the row"""
    num_action_values: int
    """true entries of `action_valid`"""
    num_tokens: int
    """tokens that are not padding"""

    def to(self, device: torch.device) -> PackedBatch:
        """The batch with its tensors on `device`; the three that steer kernels from the host stay on the CPU."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            tokens=move(self.tokens),
            labels=move(self.labels),
            positions=move(self.positions),
            pixels=move(self.pixels),
            image_slots=move(self.image_slots),
            actions=move(self.actions),
            action_valid=move(self.action_valid),
            noise=move(self.noise),
            time=move(self.time),
            action_slots=move(self.action_slots),
            states=move(self.states),
            state_slots=move(self.state_slots),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums, never means: f32[] losses and how many terms each one adds up."""

    ce: Tensor
    flow: Tensor
    num_labels: int
    num_action_values: int

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            ce=self.ce + other.ce,
            flow=self.flow + other.flow,
            num_labels=self.num_labels + other.num_labels,
            num_action_values=self.num_action_values + other.num_action_values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What resume needs beyond weights. `packs`, `era` and `first` are the loader's whole state."""

    step: int = 0
    packs: int = 0
    """rows already read, over all ranks"""
    era: int = 0
    """part of the data's order that the next row is in"""
    first: int = 0
    """rows before that part"""
    samples: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a robot sees: images u8[h, w, 3] RGB by camera, state f32[A0] in its own units."""

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    instruction: str
    robot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionChunk:
    """What a policy answers: values f32[H, A0] in the robot's own units, and the weights that made them."""

    values: NDArray[np.float32]
    key: str
    codes: NDArray[np.int64] | None = field(default=None)
