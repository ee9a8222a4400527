"""What a codec costs in successes: its replays beside the raw ones of the same episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flagscale_vla.sim.intervals import wilson
from flagscale_vla.sim.rollout import Attempt, Controller, Outcome
from flagscale_vla.sim.scores import Scores

Episode = tuple[str, int]
"""task, number"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Of the episodes that the raw replay solved, and that ended without an error: those still solved, and the rest."""

    kept: int
    late: int
    """of those kept, how many took more steps than the raw replay"""
    lost: int

    @property
    def share(self) -> float | None:
        """None where the raw replay solved none."""
        total = self.kept + self.lost
        return self.kept / total if total else None

    def figures(self, name: str, confidence: float) -> dict[str, float | None]:
        """The share and its interval (Wilson)."""
        low, high = wilson(self.kept, self.kept + self.lost, confidence)
        return {name: self.share, f"{name}_low": low, f"{name}_high": high}


def count_kept(attempts: Sequence[Attempt], controller: Controller) -> Kept:
    """What `controller` keeps of the raw replay's successes."""
    raw, found = by_episode(attempts, Controller.raw), by_episode(attempts, controller)
    pairs = [(raw[e], found[e]) for e in raw if raw[e].outcome is Outcome.success and e in found]
    kept = [(before, after) for before, after in pairs if after.outcome is Outcome.success]
    return Kept(
        kept=len(kept),
        late=sum(after.steps > before.steps for before, after in kept),
        lost=sum(after.outcome is Outcome.failure for _, after in pairs),
    )


def by_episode(attempts: Sequence[Attempt], controller: Controller) -> dict[Episode, Attempt]:
    """One controller's attempt at each episode."""
    return {(a.trial.task, a.trial.number): a for a in attempts if a.trial.controller is controller}


def replay_figures(scores: Scores) -> dict[str, object]:
    """What `summary.json` holds: pooled, and a row for each task and each simulator."""
    tasks = sorted({attempt.trial.task for attempt in scores.attempts})
    simulators = dict.fromkeys(task.split("/")[0] for task in tasks)
    attempts = scores.attempts
    return figures_of(attempts, scores.confidence) | {
        "confidence": scores.confidence,
        "per_simulator": {name: figures_of(of_simulator(attempts, name), scores.confidence) for name in simulators},
        "per_task": {
            task: figures_of([a for a in attempts if a.trial.task == task], scores.confidence) for task in tasks
        },
    }


def of_simulator(attempts: Sequence[Attempt], simulator: str) -> list[Attempt]:
    """The attempts on tasks of one simulator."""
    return [attempt for attempt in attempts if attempt.trial.task.split("/")[0] == simulator]


def figures_of(attempts: Sequence[Attempt], confidence: float) -> dict[str, object]:
    """Figures of some attempts. `gained` are episodes that only the codec solved; they count for nothing."""
    scores = Scores(attempts=attempts, confidence=confidence)
    raw, codec, chunks = (scores.tally(c) for c in (Controller.raw, Controller.codec, Controller.chunks))
    kept, kept_in_chunks = (count_kept(attempts, c) for c in (Controller.codec, Controller.chunks))
    counts: Mapping[str, int] = {
        "episodes": raw.trials + raw.error,
        "raw_successes": raw.success,
        "kept": kept.kept,
        "late": kept.late,
        "lost": kept.lost,
        "gained": codec.success - kept.kept,
        "lost_in_chunks": kept_in_chunks.lost,
        "errors": codec.error + chunks.error,
        "raw_errors": raw.error,
    }
    intervals = kept.figures("replay_success", confidence) | kept_in_chunks.figures("chunks_success", confidence)
    return {**intervals, **counts}
