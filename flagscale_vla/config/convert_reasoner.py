"""Settings of `convert_reasoner`: Embodied-Reasoner's trajectories of pictures, thoughts and decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check
from flagscale_vla.config.convert_rows import RowsRun


class MaskRule(Enum):
    """Which answers are trained on."""

    all = "all"
    """every one (stages 1 and 2)"""
    after_feedback = "after_feedback"
    """only what follows the first feedback, if there is one (stage 3, as its authors do it)"""
    per_turn = "per_turn"
    """all but those that a feedback follows at once: the wrong ones, however many there are"""


@dataclass(slots=True, kw_only=True)
class ConvertReasonerRun(RowsRun):
    """Files of trajectories become one folder of shards."""

    mask: MaskRule
    feedback: str
    """what marks that the last decision was wrong; kept as text"""
    one_decision: bool
    """refuse a trajectory with an answer that does not hold exactly one <DecisionMaking>"""

    def __post_init__(self) -> None:
        RowsRun.__post_init__(self)
        rule = f"mask={self.mask.value} looks for it"
        ok = bool(self.feedback) or self.mask is MaskRule.all
        check(ok, "feedback", self.feedback or "''", rule, "'<|feedback|>'")
