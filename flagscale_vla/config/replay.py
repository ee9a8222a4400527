"""The root of the settings that replay expert episodes through an action tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive, check_seed
from flagscale_vla.config.runs import Tier


@dataclass(slots=True, kw_only=True)
class ReplayRun:
    """Replaying expert episodes in the simulator, as they were and through an action tokenizer."""

    output: str
    tokenizer: str
    """folder of an action tokenizer"""
    tier: Tier
    tasks: list[str]
    """tasks to replay; empty for all of the tier"""
    episodes: int
    """episodes per task, on seeds never recorded"""
    horizon: int
    """steps of a chunk"""
    linger: int
    """control steps for which the last action is held at the end of an open-loop replay. The expert's last step is the
    very one that solved the task, so without any a hand that comes a step late counts as failed"""
    chunks: bool
    """replay a third way too: chunk by chunk, with the expert asked anew at the end of each; takes twice the time of
    the others together"""
    max_steps: int
    """control steps at 20 Hz before the expert counts as unable; 0 for each world's own limit"""
    confidence: float
    """level of the interval printed with each share"""
    processes: int
    seed: int

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/replay")
        rule = "must name a folder with an action tokenizer"
        check(bool(self.tokenizer), "tokenizer", "''", rule, "runs/tokenizer_omnisat/action_tokenizer")
        for name in ("episodes", "horizon", "processes"):
            check_positive(name, self.__getattribute__(name))
        for name in ("linger", "max_steps"):
            check(self.__getattribute__(name) >= 0, name, self.__getattribute__(name), "must not be negative", 0)
        check(0.0 < self.confidence < 1.0, "confidence", self.confidence, "must lie between 0 and 1", 0.95)
        check_seed(self.seed)
