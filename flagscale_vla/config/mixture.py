"""Settings of order: which sources are mixed by what weights, in which stages, and how samples wait for a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive

NAME_RULE = re.compile(r"[A-Za-z0-9_\-]+")


class Weigh(Enum):
    """What a weight is a share of."""

    samples = "samples"
    tokens = "tokens"


class TooLong(Enum):
    """What becomes of a sample that is longer than a row."""

    refuse = "refuse"
    """it is listed as bad"""
    split = "split"
    """it is cut before user's turns into pieces that fit; a piece that still does not is listed as bad"""


@dataclass(slots=True, kw_only=True)
class SourceConfig:
    """One dataset of a mixture."""

    shards: str
    """folder or URL of `train-*.tar` and `heldout-*.tar`"""
    weight: float
    """its share, in any scale"""


@dataclass(slots=True, kw_only=True)
class StageConfig:
    """A part of the curriculum."""

    samples: int
    """of the whole mixture, after which the next stage begins; 0, for the last stage alone, is all the rest"""
    weights: dict[str, float]
    """by source; one that is not named keeps its weight of `data.mixture`"""


@dataclass(slots=True, kw_only=True)
class OrderConfig:
    """In what order the samples of which sources fill rows; see docs/data.md."""

    shards: str
    """folder or URL of `train-*.tar` and `heldout-*.tar`; empty where `mixture` names several"""
    mixture: dict[str, SourceConfig]
    """by name; the keys of a source's samples begin with it"""
    weigh: Weigh
    stages: list[StageConfig]
    """one after another; empty for one alone, with the weights of `mixture`"""
    epochs: int
    """how often a source may be gone through; a run that needs more is refused. 0 is for ever"""
    era: int
    """samples whose order is planned at once, about; at an era's end a few rows are left less full"""
    pool: int
    """samples that wait to be packed; the more, the less padding"""
    too_long: TooLong

    def check_order(self) -> None:
        """Refuse an order that cannot be.

        Raises:
            ConfigError: naming the setting.
        """
        rule = "give either data.shards or data.mixture, not both"
        check(bool(self.shards) != bool(self.mixture), "data.shards", self.shards or "''", rule, "runs/demo")
        for name in ("era", "pool"):
            check_positive(f"data.{name}", self.__getattribute__(name))
        check(self.epochs >= 0, "data.epochs", self.epochs, "must not be negative; 0 is for ever", 0)
        for name, source in self.mixture.items():
            _check_source(name, source)
        self._check_stages()
        unused = [name for name in self.mixture if not any(weights[name] for _, weights in self.weights_by_stage())]
        rule = "every source needs a weight above zero, in some stage at least"
        check(not unused, f"data.mixture.{(unused or [''])[0]}.weight", 0, rule, 1.0)

    def _check_stages(self) -> None:
        for number, stage in enumerate(self.stages):
            key, last = f"data.stages[{number}]", number == len(self.stages) - 1
            ok = (stage.samples == 0) if last else (stage.samples > 0)
            rule = "the last stage is all the rest" if last else "only the last stage may have no end"
            check(ok, f"{key}.samples", stage.samples, rule, 0 if last else 1_000_000)
            unknown = sorted(stage.weights.keys() - self.mixture.keys())
            rule = f"there is no such source; data.mixture has {sorted(self.mixture)}"
            check(not unknown, f"{key}.weights", unknown, rule, "{NAME: 1.0}")
            weights = self._weights(stage)
            check(min(weights.values(), default=0) >= 0, f"{key}.weights", weights, "must not be negative", "{NAME: 0}")
            check(sum(weights.values()) > 0, f"{key}.weights", weights, "must not all be zero", "{NAME: 1.0}")

    def weights_by_stage(self) -> list[tuple[int, Mapping[str, float]]]:
        """(samples, weight of every source) of each stage; 0 samples are all the rest."""
        if not self.stages:
            return [(0, {name: source.weight for name, source in self.mixture.items()})]
        return [(stage.samples, self._weights(stage)) for stage in self.stages]

    def _weights(self, stage: StageConfig) -> dict[str, float]:
        return {name: stage.weights.get(name, source.weight) for name, source in self.mixture.items()}


def _check_source(name: str, source: SourceConfig) -> None:
    key = f"data.mixture.{name}"
    check(bool(NAME_RULE.fullmatch(name)), "data.mixture", name, "a name is letters, digits, '_' and '-'", "bridge_v2")
    check(bool(source.shards), f"{key}.shards", "''", "must name a folder of tar shards", "runs/demo")
    check(source.weight >= 0, f"{key}.weight", source.weight, "must not be negative", 1.0)
