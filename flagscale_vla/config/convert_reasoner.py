"""Settings of `convert_reasoner`: Embodied-Reasoner's trajectories of pictures, thoughts and decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_seed
from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.config.convert_conversations import SystemTurn, check_name


class MaskRule(Enum):
    """Which answers are trained on."""

    all = "all"
    """every one (stages 1 and 2)"""
    after_feedback = "after_feedback"
    """only what follows the first feedback, if there is one (stage 3, as its authors do it)"""
    per_turn = "per_turn"
    """all but those that a feedback follows at once: the wrong ones, however many there are"""


@dataclass(slots=True, kw_only=True)
class ConvertReasonerRun(ConvertRun):
    """Files of trajectories become one folder of shards."""

    files: list[str]
    """.json or .jsonl"""
    base: str
    """folder that the pictures are named from; empty for each file's own"""
    name: str
    """the source's, in keys and in each sample's JSON"""
    sampling: str
    """of each file: all, first:K, end:K or random:K, with K a number of rows or P%"""
    seed: int
    """of a random sampling"""
    system: SystemTurn
    mask: MaskRule
    feedback: str
    """what marks that the last decision was wrong; kept as text"""
    one_decision: bool
    """refuse a trajectory with an answer that does not hold exactly one <DecisionMaking>"""

    def __post_init__(self) -> None:
        ConvertRun.__post_init__(self)
        check(bool(self.files), "files", self.files, "must name files of rows", "[data/train_multiturn_9390.json]")
        check_name(self.name)
        check_seed(self.seed)
        rule = f"mask={self.mask.value} looks for it"
        ok = bool(self.feedback) or self.mask is MaskRule.all
        check(ok, "feedback", self.feedback or "''", rule, "'<|feedback|>'")
