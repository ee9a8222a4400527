"""Packed rows of seeded random documents, and the settings of a very small model: no tokenizer, no shards."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.schema import register_schemas
from flagscale_vla.data.positions import rotary_positions
from flagscale_vla.records import PackedBatch

CONF = Path(__file__).resolve().parents[2] / "conf"
IMAGE_TOKEN = 3
FILM_TOKEN = 2
FILM_STRIDE = 4.0
"""Rotary time positions from one pair of a film's frames to the next: 1 frame a second, at Qwen2.5-VL's rate."""
HORIZON, WIDTH = 4, 8
SMALL = [
    "model.vision.layers=2",
    "model.vision.hidden=32",
    "model.vision.intermediate=48",
    "model.vision.heads=4",
    "model.vision.full_attention_layers=[1]",
    "model.language.layers=4",
    "model.language.hidden=64",
    "model.language.intermediate=96",
    "model.language.heads=4",
    "model.language.kv_heads=2",
    "model.language.mrope_sections=[2,3,3]",
    "model.language.vocab=128",
    "model.flow.width=8",
    "data.pack_length=256",
    "data.shards=unused",
    "platform.device=cpu",
    "platform.matmul=highest",
    "platform.threads=1",
]


NO_WINDOWS = ["model.vision.window_pixels=0", "model.vision.full_attention_layers=[]"]
FAMILIES = {
    "qwen2_5_vl": [],
    "qwen2_vl": [
        "model.vision.kind=qwen2_vl",
        "model.vision.intermediate=64",
        "data.image.video.tokens_per_second=0",
        *NO_WINDOWS,
    ],
    "internvl": ["verb=dryrun", "model.vision.kind=internvit", "model.vision.image_pixels=56", *NO_WINDOWS],
}
"""Overrides that make the very small model one of a family. InternVL's images are of 4 x 4 patches.

Its settings hold for a plan alone: samples' pictures cannot be cut for it yet."""


def settings(*overrides: str) -> TrainRun:
    """The tiny run's settings with a very small model."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.to_object(compose("train_tiny_action", overrides=[*SMALL, *overrides]))


def public_model(name: str) -> ModelConfig:
    """A model of `conf/model`."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.to_object(compose("train_3b_action", overrides=[f"model={name}"]).model)


@dataclass(frozen=True)
class Document:
    """Two tokens of text, images of these patches, perhaps a film, more text, perhaps a state and a chunk."""

    text: int
    images: tuple[tuple[int, int], ...] = ()
    """(height, width) patches of each"""
    film: tuple[int, int, int] | None = None
    """(time, height, width) patches of one film, after the images and a token of text"""
    acts: bool = False

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        """Patches of each image and of the film."""
        return [*((1, *image) for image in self.images), *([self.film] if self.film else [])]

    @property
    def image_tokens(self) -> list[int]:
        """Tokens of each image, and of the film."""
        return [math.prod(grid) // 4 for grid in self.grids]

    @property
    def length(self) -> int:
        """Tokens of the document."""
        return self.text + sum(self.image_tokens) + ((1 + HORIZON) if self.acts else 0)


TEXT_ONLY = [Document(20), Document(33), Document(7)]
IMAGES = [Document(12, images=((4, 4),)), Document(9, images=((4, 8), (8, 4), (2, 2))), Document(15)]
ACTIONS = [Document(11, images=((4, 4), (8, 8)), acts=True), Document(6, acts=True), Document(10, images=((4, 4),))]


def tiled(documents: list[Document]) -> list[Document]:
    """The documents with every image of the one size that the very small InternVL takes."""
    return [replace(document, images=((4, 4),) * len(document.images)) for document in documents]


def make_row(
    documents: list[Document], length: int, seed: int = 0, kind: VisionKind = VisionKind.qwen2_5_vl
) -> PackedBatch:
    """Lay documents end to end and pad to `length`, with dummies of what they lack."""
    intern = kind is VisionKind.internvit
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *(document.length for document in documents)])
    acting = [(document, start) for document, start in zip(documents, starts, strict=False) if document.acts]
    grids = [grid for document in documents for grid in document.grids] or [(1, 2, 2)]
    # Of a film's last two frames one is lacking.
    frames = [2 * steps - 1 for steps, _, _ in grids]
    images = [
        slots for document, start in zip(documents, starts, strict=False) for slots in _image_slots(document, start)
    ]
    labels = np.full(length, -100)
    labels[: starts[-1]] = np.where(rng.random(starts[-1]) < 0.4, rng.integers(4, 100, starts[-1]), -100)
    action_slots = [start + document.length - HORIZON + np.arange(HORIZON) for document, start in acting]
    count = max(1, len(acting))
    valid = np.zeros((count, HORIZON, WIDTH), bool)
    valid[: len(acting), :, :6] = True
    valid[: len(acting), -1] = False
    bounds = [*starts] + ([length] if starts[-1] < length else [])
    return PackedBatch(
        tokens=_tokens(documents, starts, length, rng),
        labels=torch.from_numpy(labels),
        positions=_positions(documents, length - int(starts[-1]), plain=intern),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        pixels=_bytes(rng, sum(n * h * w * 588 for n, (_, h, w) in zip(frames, grids, strict=True))),
        frames=torch.tensor(frames),
        grid=torch.tensor(grids),
        image_slots=torch.tensor(images or [-1]),
        actions=_normal(rng, count, HORIZON, WIDTH),
        action_valid=torch.from_numpy(valid),
        noise=_normal(rng, count, HORIZON, WIDTH),
        time=torch.from_numpy(rng.random(count).astype(np.float32)),
        action_slots=torch.from_numpy(np.stack(action_slots)) if acting else torch.full((1, HORIZON), -1),
        states=_normal(rng, count, WIDTH),
        state_slots=torch.tensor([int(slots[0]) - 1 for slots in action_slots] or [-1]),
        keys=tuple(f"document-{n}" for n in range(len(documents))),
        num_labels=int((labels >= 0).sum()),
        num_action_values=int(valid.sum()),
        num_tokens=int(starts[-1]),
    )


def _image_starts(document: Document) -> list[int]:
    """Images come after the first two tokens of text, a film after one more."""
    starts = [2 + sum(document.image_tokens[:n]) for n in range(len(document.grids))]
    return [*starts[:-1], starts[-1] + 1] if document.film else starts


def _image_slots(document: Document, start: int) -> list[int]:
    counted = zip(_image_starts(document), document.image_tokens, strict=True)
    return [slot for first, count in counted for slot in range(start + first, start + first + count)]


def _tokens(documents: list[Document], starts: np.ndarray, length: int, rng: np.random.Generator) -> Tensor:
    tokens = rng.integers(4, 100, length)
    for document, start in zip(documents, starts, strict=False):
        slots = _image_slots(document, int(start))
        tokens[slots] = IMAGE_TOKEN
        if document.film:
            tokens[slots[-math.prod(document.film) // 4 :]] = FILM_TOKEN
    return torch.from_numpy(tokens)


def _positions(documents: list[Document], padding: int, plain: bool) -> Tensor:
    """In three axes, or plain numbers on all three."""
    parts = [
        rotary_positions(d.length, [], [], [])
        if plain
        else rotary_positions(d.length, _image_starts(d), d.grids, [FILM_STRIDE] * len(d.grids))
        for d in documents
    ]
    return torch.from_numpy(np.concatenate([*parts, rotary_positions(padding, [], [], [])], axis=1))


def _bytes(rng: np.random.Generator, *shape: int) -> Tensor:
    """Normalised they are about as large as the other inputs; larger ones have larger rounding errors."""
    return torch.from_numpy(rng.integers(64, 192, shape, dtype=np.uint8))


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
