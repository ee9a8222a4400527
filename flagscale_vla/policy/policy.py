"""A checkpoint in this process, answering observations with chunks of actions in the robot's own units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flagscale_vla.config.checkpoints import CONFIG, RECIPE, WEIGHTS, find_checkpoint
from flagscale_vla.config.data import Answer
from flagscale_vla.config.model import ModelConfig
from flagscale_vla.config.parallel import ParallelConfig, PlatformConfig
from flagscale_vla.config.stored import read_model
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.mcore.platform import Platform, choose_platform
from flagscale_vla.mcore.state import load_weights
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.sampling import denoise
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.policy.decoding import Writer, write_codes, write_codes_and_denoise
from flagscale_vla.records import ActionChunk, Observation


class Policy:
    """A model, the recipe it was trained with, the number of Euler steps it takes and how it chooses codes.

    The recipe says what it answers with: a chunk that is denoised, codes, or both.
    """

    def __init__(
        self,
        model: VisionLanguageAction,
        recipe: Recipe,
        platform: Platform,
        denoise_steps: int,
        temperature: float,
        key: str,
    ) -> None:
        self.model, self.recipe, self.platform = model.eval(), recipe, platform
        self.denoise_steps, self.temperature, self.key = denoise_steps, temperature, key

    @classmethod
    def open(cls, checkpoint: Path, *, platform: PlatformConfig, denoise_steps: int, temperature: float) -> Policy:
        """Load a checkpoint, saved under any layout; see `client.open_policy`."""
        folder = find_checkpoint(checkpoint)
        chosen = choose_platform(platform)
        model = build_whole(read_model(folder / CONFIG), chosen)
        load_weights([model], StoredTensors.open(folder / WEIGHTS))
        return cls(model, Recipe.load(folder / RECIPE), chosen, denoise_steps, temperature, key=str(folder))

    @property
    def device(self) -> str:
        """A word for what it computes on."""
        return self.platform.name

    def infer(self, observations: Sequence[Observation], *, seed: int) -> list[ActionChunk]:
        """One chunk for each observation, all run as one packed row.

        Raises:
            ValueError: for an unknown robot, a missing camera or a state of another width.
        """
        prompts = [self.recipe.prompt(seen, seed=seed + place) for place, seen in enumerate(observations)]
        length = sum(len(prompt.tokens) for prompt in prompts)
        batch = self.recipe.pack(prompts, length).to(self.platform.device)
        robots = [seen.robot for seen in observations]
        if self.recipe.codes is None:
            return self._denoised(robots, denoise(self.model, batch, self.denoise_steps), [None] * len(robots))
        writer = Writer(ids=self.recipe.codes.ids, temperature=self.temperature)
        grammars = [self.recipe.codes.grammar(robot) for robot in robots]
        if self.recipe.action.answer is Answer.both:
            steps = self.denoise_steps
            strings, actions = write_codes_and_denoise(self.model, batch, writer, grammars, seed, steps=steps)
            return self._denoised(robots, actions, strings)
        found = write_codes(self.model, batch, writer, grammars, seed)
        return [
            ActionChunk(values=self.recipe.codes.decode(seen.robot, string, seen.state), key=self.key, codes=string)
            for seen, string in zip(observations, found, strict=True)
        ]

    def _denoised(
        self, robots: Sequence[str], actions: Tensor, strings: Sequence[NDArray[np.int64] | None]
    ) -> list[ActionChunk]:
        """Denoised actions f32[C, H, A] in the robots' own units."""
        return [
            ActionChunk(values=self.recipe.action_values(robot, chunk), key=self.key, codes=string)
            for robot, chunk, string in zip(robots, actions.float().cpu().numpy(), strings, strict=True)
        ]

    def normalize_action(self, robot: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions f32[..., A0] of `robot` less the training mean, over the training standard deviation."""
        statistics = self.recipe.statistics[robot].action
        mean, std = (np.asarray(field, np.float32) for field in (statistics.mean, statistics.std))
        return (values - mean) / np.maximum(std, np.finfo(np.float32).eps)


def build_whole(model: ModelConfig, platform: Platform) -> VisionLanguageAction:
    """The whole model on this process alone, its weights not yet set."""
    alone = ParallelConfig.alone()
    topology = Topology.start(alone, platform)
    return VisionLanguageAction(model, alone, platform, topology).to(platform.device)
