"""What a robot or a simulator knows of a policy, and how to open one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.parallel import PlatformConfig
from flagscale_vla.records import ActionChunk, Observation


class PolicyClient(Protocol):
    """A policy, wherever it runs."""

    @property
    def device(self) -> str:
        """A word for what it computes on."""

    def infer(self, observations: Sequence[Observation], *, seed: int) -> list[ActionChunk]:
        """One chunk for each observation; its noise, and draws of codes, are a function of `seed` and its place."""

    def normalize_action(self, robot: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions f32[..., A0] of `robot` less the training mean, over the training standard deviation."""


class Codec(Protocol):
    """An action tokenizer there and back, for chunks of one length."""

    @property
    def kind(self) -> str:
        """A word for what it is, as `omnisat` or `fast`."""

    @property
    def horizon(self) -> int:
        """Steps of a chunk, H."""

    def reconstruct(
        self, robot: str, values: NDArray[np.float32], start: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """What is left of a chunk f32[H, A0], in the robot's own units, once it was encoded and decoded.

        `start`, f32[S0], is the robot's state before it, which a codec with a pinned start needs.

        Raises:
            ValueError: the robot is unknown, or the chunk has another width or holds NaN or infinity.
        """


def open_policy(checkpoint: Path, *, platform: PlatformConfig, denoise_steps: int, temperature: float) -> PolicyClient:
    """Load a checkpoint, or the newest of a training run's output folder, into this process.

    Args:
        checkpoint: what it answers with is told by its recipe.
        platform: what to compute on.
        denoise_steps: Euler steps of a chunk that is denoised.
        temperature: of codes that are drawn; 0 takes the likeliest.

    Raises:
        ConfigError: where there is no whole checkpoint.
        ValueError: where its tensors are not those of the model it names.
    """
    # Importing Megatron-core takes seconds; those who only need the protocol are spared it.
    from flagscale_vla.policy.policy import Policy

    return Policy.open(checkpoint, platform=platform, denoise_steps=denoise_steps, temperature=temperature)


def open_codec(folder: Path, *, horizon: int) -> Codec:
    """Load a saved action tokenizer of any kind into this process.

    Raises:
        ValueError: the folder holds none, or it is damaged.
    """
    from flagscale_vla.policy.codec import TokenizerCodec

    return TokenizerCodec.open(folder, horizon)
