"""Attempts that are done, one JSON line each, so that an evaluation that was cut short goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from flagscale_vla.reports.outputs import replace_text
from flagscale_vla.sim.openloop import OpenLoop
from flagscale_vla.sim.rollout import Attempt, Controller, Outcome, Trial

logger = logging.getLogger(__name__)

EPISODES = "episodes.jsonl"


class EpisodesLog:
    """The attempts in an output folder. Those of another policy or other settings are dropped.

    Args:
        folder: the output folder.
        identity: of the policy and all that its results depend on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._path = folder, folder / EPISODES
        digest = hashlib.sha256(identity.encode()).hexdigest()
        self.attempts: list[Attempt] = []
        self.open_loop: OpenLoop | None = None
        header = {"of": digest}
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        if lines[:1] == [json.dumps(header)]:
            self._read(lines[1:])
        # Written anew: a run that was killed may have left half a line.
        replace_text(self._path, json.dumps(header) + "\n")
        for done in [self.open_loop, *self.attempts]:
            if done is not None:
                self._append(self._entry(done))

    def add(self, done: Attempt | OpenLoop) -> None:
        """Keep what was done, in memory and on disk."""
        if isinstance(done, OpenLoop):
            self.open_loop = done
        else:
            self.attempts.append(done)
        self._append(self._entry(done))

    def has(self, trial: Trial) -> bool:
        """Whether a trial has ended; one that ended in an error has not."""
        key = (trial.controller, trial.task, trial.number)
        return any((a.trial.controller, a.trial.task, a.trial.number) == key for a in self.attempts)

    def _append(self, entry: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _entry(self, attempt: Attempt | OpenLoop) -> dict[str, object]:
        if isinstance(attempt, OpenLoop):
            return {"open_loop": asdict(attempt)}
        film = attempt.trial.film
        return {
            "controller": attempt.trial.controller.value,
            "task": attempt.trial.task,
            "number": attempt.trial.number,
            "outcome": attempt.outcome.value,
            "steps": attempt.steps,
            "seconds": round(attempt.seconds, 3),
            "instruction": attempt.instruction,
            "message": attempt.message,
            "film": None if film is None else film.relative_to(self._folder).as_posix(),
        }

    def _read(self, lines: list[str]) -> None:
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                logger.warning("%s: half a line is left out: %s", self._path, line)
                continue
            if "open_loop" in entry:
                self.open_loop = OpenLoop(**entry["open_loop"])
            elif entry["outcome"] != Outcome.error.value:
                self.attempts.append(self._attempt(entry))

    def _attempt(self, entry: dict[str, object]) -> Attempt:
        film = entry.pop("film")
        trial = Trial(
            controller=Controller(entry.pop("controller")),
            task=str(entry.pop("task")),
            number=int(str(entry.pop("number"))),
            film=None if film is None else self._folder / str(film),
        )
        outcome = Outcome(entry.pop("outcome"))
        return Attempt(trial=trial, outcome=outcome, **entry)  # type: ignore[arg-type]
