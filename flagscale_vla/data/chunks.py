"""Chunks of actions as the flow head reads them: padded, and at most one of them noised (EO-1 report, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.data import ActionConfig

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """The C chunks of a sample. The model mixes x_t = time * noise + (1 - time) * actions.

    A clean chunk has time 0 and no noise, so that x_t is its actions, and nothing in it is valid.
    """

    actions: Floats
    """[C, H, A]"""
    valid: NDArray[np.bool_]
    """[C, H, A]"""
    noise: Floats
    """[C, H, A]"""
    time: Floats
    """[C]"""


def clean_chunks(actions: Sequence[Floats], horizon: int, width: int) -> Chunks:
    """Chunks without noise, from normalised actions f32[>=H, A0] each."""
    shape = (len(actions), horizon, width)
    padded = np.zeros(shape, np.float32)
    for row, values in zip(padded, actions, strict=True):
        row[:, : values.shape[1]] = values[:horizon]
    return Chunks(
        actions=padded,
        valid=np.zeros(shape, np.bool_),
        noise=np.zeros(shape, np.float32),
        time=np.zeros(len(actions), np.float32),
    )


def noise_chunk(
    chunks: Chunks,
    chosen: int,
    valid: NDArray[np.bool_],
    dims: int,
    config: ActionConfig,
    generator: np.random.Generator,
) -> None:
    """Noise one chunk and mark what is trained on in it.

    Args:
        chunks: written into.
        chosen: which one.
        valid: bool[>=H], true where a step belongs to the episode.
        dims: A0, the robot's own width.
        config: how flow time is drawn: time_scale * Beta(beta_alpha, beta_beta) + time_offset.
        generator: of noise and time.
    """
    horizon, width = chunks.noise.shape[1:]
    chunks.noise[chosen] = generator.standard_normal((horizon, width), np.float32)
    chunks.time[chosen] = config.time_scale * generator.beta(config.beta_alpha, config.beta_beta) + config.time_offset
    chunks.valid[chosen, :, : width if config.supervise_padding else dims] = valid[:horizon, None]


def pure_noise(horizon: int, width: int, generator: np.random.Generator) -> Chunks:
    """One chunk at time 1, where denoising begins."""
    chunks = clean_chunks([np.zeros((horizon, width), np.float32)], horizon, width)
    chunks.noise[0] = generator.standard_normal((horizon, width), np.float32)
    chunks.time[0] = 1
    return chunks
