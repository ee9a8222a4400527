"""Settings of samples: where shards lie, how an image, an instruction and an action become tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive, check_share
from flagscale_vla.config.image import ImageConfig
from flagscale_vla.config.mixture import OrderConfig


class Normalization(Enum):
    """How states and actions are scaled."""

    mean_std = "mean_std"
    quantile = "quantile"
    """the 1st percentile to -1, the 99th to 1"""


@dataclass(slots=True, kw_only=True)
class CacheConfig:
    """What this machine keeps of shards."""

    folder: str
    """where blocks of remote shards are kept, and what is found in shards whose own folder cannot be written to"""
    max_bytes: int
    """of blocks; those used longest ago go first"""

    def __post_init__(self) -> None:
        check(bool(self.folder), "data.cache.folder", "''", "must name a folder", "runs/cache")
        check_positive("data.cache.max_bytes", self.max_bytes)


@dataclass(slots=True, kw_only=True)
class DataConfig(OrderConfig):
    """Where samples come from and how they fill a row."""

    cache: CacheConfig
    tokenizer: str
    """a Hugging Face `tokenizer.json`, or `fit` to fit a small byte-level BPE on the shards' text"""
    system_prompt: str
    image: ImageConfig
    pack_length: int
    """tokens in one row, S"""
    workers: int
    """processes that read ahead; 0 reads in the training process"""
    max_bad_share: float
    """stop once more than this share of samples read is quarantined; the first 100 reads count as 100"""
    max_bad_shard_share: float
    """the same for each shard; its first 20 reads count as 20"""

    def __post_init__(self) -> None:
        self.check_order()
        rule = "must name a tokenizer.json, or be `fit`"
        check(bool(self.tokenizer), "data.tokenizer", self.tokenizer or "''", rule, "fit")
        check(self.pack_length > 0, "data.pack_length", self.pack_length, "must be above zero", 2560)
        check(self.workers >= 0, "data.workers", self.workers, "must not be negative", 0)
        check_share("data.max_bad_share", self.max_bad_share)
        check_share("data.max_bad_shard_share", self.max_bad_shard_share)


class Answer(Enum):
    """What a model answers with."""

    flow = "flow"
    """a chunk that is denoised"""
    codes = "codes"
    """an action tokenizer's codes, written like words"""
    both = "both"
    """codes, and behind them a chunk that is denoised in their sight"""


class CodeIds(Enum):
    """Where in the language model's vocabulary codes have their ids."""

    appended = "appended"
    """new ids behind the tokenizer's own; the embedding needs rows for them"""
    tail = "tail"
    """RoboBrain-X0's place: the last 2,048 of Qwen2.5's text ids, which lose their meaning as text"""


@dataclass(slots=True, kw_only=True)
class ActionConfig:
    """How a chunk of actions is made and noised (EO-1 report, section 3), and how it is written in codes."""

    horizon: int
    """steps in a chunk, H"""
    answer: Answer
    tokenizer: str
    """folder of an action tokenizer; empty where there are no codes"""
    layers: int
    """residual layers of the action tokenizer whose codes are used; 0 for all"""
    ids: CodeIds
    normalization: Normalization
    beta_alpha: float
    beta_beta: float
    time_scale: float
    time_offset: float
    """flow time is time_scale * Beta(beta_alpha, beta_beta) + time_offset; 1 is pure noise"""
    supervise_padding: bool
    """whether the dims past the robot's own width are trained on, as EO-1 does"""

    def __post_init__(self) -> None:
        for name in ("horizon", "beta_alpha", "beta_beta", "time_scale"):
            check_positive(f"action.{name}", self.__getattribute__(name))
        self._check_codes()
        ok = self.time_offset >= 0 and self.time_scale + self.time_offset <= 1.0 + 1e-9
        rule = f"must not be negative, and time_scale={self.time_scale} plus it must not exceed 1"
        check(ok, "action.time_offset", self.time_offset, rule, round(1 - self.time_scale, 6))

    def _check_codes(self) -> None:
        answer, tokenizer = self.answer.value, self.tokenizer or "''"
        check(self.layers >= 0, "action.layers", self.layers, "must not be negative", 0)
        if self.answer is Answer.flow:
            check(not self.tokenizer, "action.tokenizer", tokenizer, f"action.answer={answer} has no codes", "''")
            check(self.layers == 0, "action.layers", self.layers, f"action.answer={answer} has no codes", 0)
        rule = f"action.answer={answer} needs the folder of an action tokenizer"
        ok = self.answer is Answer.flow or bool(self.tokenizer)
        check(ok, "action.tokenizer", tokenizer, rule, "runs/tokenizer_omnisat/action_tokenizer")
