"""Success rates from attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flagscale_vla.sim.intervals import wilson
from flagscale_vla.sim.rollout import Attempt, Controller, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Outcomes of some attempts."""

    success: int
    failure: int
    error: int

    @property
    def trials(self) -> int:
        """Attempts that say something of the controller: those that ended without an error."""
        return self.success + self.failure

    @property
    def mean(self) -> float | None:
        """Share of successes among them; None where there is none."""
        return self.success / self.trials if self.trials else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What an evaluation found."""

    attempts: Sequence[Attempt]
    confidence: float

    def tally(self, controller: Controller, task: str | None = None) -> Tally:
        """Outcomes of one controller, on one task or on all."""
        found = [
            attempt.outcome
            for attempt in self.attempts
            if attempt.trial.controller is controller and task in (None, attempt.trial.task)
        ]
        return Tally(
            success=found.count(Outcome.success),
            failure=found.count(Outcome.failure),
            error=found.count(Outcome.error),
        )

    def per_task(self) -> dict[str, dict[str, object]]:
        """One row per task."""
        tasks = dict.fromkeys(attempt.trial.task for attempt in self.attempts)
        return {task: self._row(task) for task in sorted(tasks)}

    def figures(self) -> dict[str, object]:
        """What `summary.json` holds. Means are over episodes that ended without an error."""
        mine = self.tally(Controller.policy)
        low, high = wilson(mine.success, mine.trials, self.confidence)
        return {
            "success_mean": mine.mean,
            "success_low": low,
            "success_high": high,
            "confidence": self.confidence,
            "episodes": mine.trials + mine.error,
            "errors": mine.error,
            "floor_success_mean": self.tally(Controller.zero).mean,
            "expert_success_mean": self.tally(Controller.expert).mean,
            "scale_errors": self.tally(Controller.zero).error + self.tally(Controller.expert).error,
            "per_task": self.per_task(),
        }

    def _row(self, task: str) -> dict[str, object]:
        mine = self.tally(Controller.policy, task)
        steps = [
            attempt.steps
            for attempt in self.attempts
            if attempt.trial.controller is Controller.policy
            and attempt.trial.task == task
            and attempt.outcome is Outcome.success
        ]
        return {
            "success_mean": mine.mean,
            "successes": mine.success,
            "failures": mine.failure,
            "errors": mine.error,
            "steps_when_solved": round(float(np.mean(steps)), 1) if steps else None,
            "expert_success_mean": self.tally(Controller.expert, task).mean,
            "floor_success_mean": self.tally(Controller.zero, task).mean,
        }


def score(attempts: Sequence[Attempt], confidence: float) -> Scores:
    """Scores of attempts in a fixed order, whichever process was first."""
    order = sorted(attempts, key=lambda a: (a.trial.task, a.trial.controller.value, a.trial.number))
    return Scores(attempts=order, confidence=confidence)
