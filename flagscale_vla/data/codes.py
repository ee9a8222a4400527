"""Chunks of actions as token ids: an action tokenizer, its layers that are used, and where its codes' ids are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.tokenizer import ActionTokenizer, ChunkError, Grammar
from flagscale_vla.action.vocabulary import ActionIds
from flagscale_vla.config.checks import ConfigError, check
from flagscale_vla.config.data import ActionConfig, Answer
from flagscale_vla.data.chunks import Floats
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.records import Action
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import RobotStatistics

KEY = "action.tokenizer"
MOST_SPANS = 10.0
"""Actions whose range is wider than the fitted one by more than this are not in the same unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizers:
    """What a recipe writes with."""

    text: Tokenizer
    """with Qwen2.5-VL's and EO-1's special tokens, and codes where they are appended"""
    actions: ActionTokenizer | None
    """what makes codes, with the layers that are used; None where there are none"""


@runtime_checkable
class Layered(Protocol):
    """An action tokenizer with residual layers, of which the first few will do."""

    def with_layers(self, layers: int) -> ActionTokenizer:
        """The same one with its first `layers` layers."""


def open_action_tokenizer(action: ActionConfig) -> ActionTokenizer | None:
    """The action tokenizer that `action.tokenizer` names, with `action.layers` layers; None where there are no codes.

    Raises:
        ConfigError: there is no such folder, or it has no layers to choose from.
        ValueError: what is there is damaged or no action tokenizer.
    """
    if action.answer is Answer.flow:
        return None
    folder = Path(action.tokenizer)
    rule = "there is no such folder; `python run.py --config-name tokenizer_omnisat` makes one"
    check(folder.is_dir(), KEY, folder, rule, "runs/tokenizer_omnisat/action_tokenizer")
    return with_layers(load_action_tokenizer(folder), action.layers)


def with_layers(tokenizer: ActionTokenizer, layers: int) -> ActionTokenizer:
    """A tokenizer with its first `layers` layers; 0 for all.

    Raises:
        ConfigError: it has none.
    """
    if layers == 0:
        return tokenizer
    if not isinstance(tokenizer, Layered):
        raise ConfigError(
            f"action.layers={layers}: a {tokenizer.kind} tokenizer has no layers. This would pass: action.layers=0"
        )
    return tokenizer.with_layers(layers)


def check_ranges(tokenizer: ActionTokenizer, statistics: Mapping[str, RobotStatistics]) -> None:
    """Refuse actions that are not in the units of those the tokenizer was fitted on: codes would only clip them.

    Args:
        tokenizer: to be used on the robots.
        statistics: of the robots' actions now.

    Raises:
        ConfigError: naming a robot and a dim whose 1st to 99th percentiles lie ten times as far apart.
    """
    for robot in sorted(statistics.keys() & tokenizer.statistics.keys()):
        spans = zip(_spans(statistics[robot]), _spans(tokenizer.statistics[robot]), strict=True)
        for name, (here, there) in zip(tokenizer.embodiments[robot].action, spans, strict=True):
            if there > 0 and here > MOST_SPANS * there:
                raise ConfigError(
                    f"{KEY}: {name} of robot {robot!r} spans {here:.4g} in these shards, {there:.4g} where the action "
                    "tokenizer was fitted. Is it in another unit? This would pass: one fitted on these shards"
                )


def _spans(statistics: RobotStatistics) -> list[float]:
    """From the 1st to the 99th percentile of each action dim."""
    return [high - low for low, high in zip(statistics.action.q01, statistics.action.q99, strict=True)]


class ActionCodes:
    """An action tokenizer in use.

    Args:
        tokenizer: with the layers that are used.
        ids: of its codes.
        horizon: steps of a chunk.
        embodiments: the robots of the run.

    Raises:
        ConfigError: a robot of the run has other action dims than the one the tokenizer was fitted on, or other dims of
            the state that its chunks begin at.
    """

    def __init__(
        self, tokenizer: ActionTokenizer, ids: ActionIds, horizon: int, embodiments: Mapping[str, Embodiment]
    ) -> None:
        self.tokenizer, self.ids, self.horizon = tokenizer, ids, horizon
        self._grammars: dict[str, Grammar] = {}
        for name, robot in embodiments.items():
            fitted = tokenizer.embodiments.get(name, robot)
            _check_names("was fitted on actions", name, fitted.action, robot.action)
            if isinstance(tokenizer, OmniSat) and tokenizer.config.pin_start:
                _check_names("begins chunks at the state", name, fitted.state, robot.state)

    def encode(self, key: str, action: Action, start: Floats | None = None) -> list[int]:
        """Token ids of a chunk's first H steps; steps past an episode's end repeat its last.

        Args:
            key: of the sample.
            action: the chunk.
            start: the robot's state f32[S0] before it, which a tokenizer with a pinned start needs.

        Raises:
            BadSampleError: the chunk of sample `key` cannot be encoded.
            ConfigError: the tokenizer does not know the robot.
        """
        self.grammar(action.robot)
        try:
            codes = self.tokenizer.encode(action.robot, action.values[None, : self.horizon], _row(start))
            return self.ids.tokens(codes[0])
        except ChunkError as error:
            raise BadSampleError(key, str(error)) from error

    def decode(self, robot: str, codes: NDArray[np.int64], start: Floats | None = None) -> Floats:
        """The chunk f32[H, A0] of codes i64[K], in the robot's own units; `start` as in `encode`.

        Raises:
            CodesError: the codes stand for no chunk.
            ChunkError: the tokenizer needs a start.
        """
        return self.tokenizer.decode(robot, [codes], self.horizon, _row(start))[0]

    def grammar(self, robot: str) -> Grammar:
        """Which codes a chunk of this robot may have.

        Raises:
            ConfigError: the tokenizer does not know the robot.
        """
        if robot not in self._grammars:
            known = sorted(self.tokenizer.embodiments)
            rule = f"robot {robot!r} was not fitted; known are {known}"
            check(robot in known, KEY, self.tokenizer.kind, rule, "an action tokenizer fitted on these shards")
            self._grammars[robot] = self.tokenizer.grammar(robot, self.horizon)
        return self._grammars[robot]

    @cached_property
    def digest(self) -> str:
        """sha256 in hex of all that it is saved as: the same wherever it lies."""
        digest = sha256()
        with TemporaryDirectory() as folder:
            self.tokenizer.save(Path(folder))
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(path.name.encode() + sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def _check_names(what: str, robot: str, fitted: tuple[str, ...], here: tuple[str, ...]) -> None:
    """Refuse a robot whose dims go by other names than the tokenizer knows."""
    if fitted != here:
        raise ConfigError(
            f"{KEY}: it {what} {list(fitted)} of robot {robot!r}, which has {list(here)} here. "
            "This would pass: an action tokenizer fitted on these shards"
        )


def _row(start: Floats | None) -> Floats | None:
    """As a batch of one."""
    return None if start is None else start[None]
