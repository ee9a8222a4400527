"""RoboBrain-X0's own form of the samples, for its converter: JSON lines, with arrays and pictures beside them.

    OUTPUT/robobrain/UNIT.jsonl
    OUTPUT/robobrain/UNIT/STRETCH/  cam_high_ROW.jpg, ..., state_eepose_ROW.npy, action_eepose_ROW.npy, ...

`state_*` hold the H states that a chunk's steps begin at, f64[H, 20] or [H, 14], `action_*` the steps f64[H, 14] in
metres and radians, `action_*_token` the codes i64[1, K] of the variant that the run has.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.config.convert_agilex import AgilexRun, Prompt, Subtask, Variant
from flagscale_vla.data.convert.agilex.annotations import CAMERAS, Stretch
from flagscale_vla.data.convert.agilex.prompts import IMAGE, instruction
from flagscale_vla.data.convert.agilex.windows import Moment, Recording, Windows, chunk_rows, cut_windows
from flagscale_vla.robots.poses import pose_states

FOLDER = "robobrain"
VIEWS = dict(zip(CAMERAS, ("cam_high", "right_wrist", "left_wrist"), strict=True))
"""Its names of the pictures."""


class JsonLines:
    """Writes the lines of one unit; they appear whole or not at all."""

    def __init__(self, run: AgilexRun, unit: str) -> None:
        self.run = dataclasses.replace(run, prompt=Prompt.robobrain)
        self.path = Path(run.output).resolve() / FOLDER / f"{unit}.jsonl"
        self.tokenizer = load_action_tokenizer(Path(run.tokenizer))
        self._file: IO[str] | None = None

    @property
    def _partial(self) -> Path:
        return self.path.with_suffix(".jsonl.tmp")

    def __enter__(self) -> JsonLines:
        folder = self.path.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._file = self._partial.open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None:
            os.replace(self._partial, self.path)

    def write(self, stretch: Stretch, recording: Recording, windows: Windows, moments: Sequence[Moment]) -> None:
        """Write a stretch's windows; `moments` has the rest of each.

        Raises:
            ChunkError: the tokenizer was not fitted on this robot, or for another width.
        """
        assert self._file is not None
        folder = self.path.with_suffix("") / f"{stretch.number:06d}"
        folder.mkdir()
        codes = self.tokenizer.encode(self.run.robot, windows.actions.astype(np.float32))
        variants = {
            variant: cut_windows(recording, dataclasses.replace(self.run, variant=variant)) for variant in Variant
        }
        states = self._states(recording, windows)
        for number, row in enumerate(recording.rows[windows.starts].tolist()):
            images = [folder / f"{VIEWS[camera]}_{row}.jpg" for camera in CAMERAS]
            for path, picture in zip(images, moments[number].pictures, strict=True):
                path.write_bytes(picture)
            token = save(folder / f"action_{self.run.variant.value}_token_{row}.npy", codes[number][None])
            entry = {
                "raw_task": stretch.task,
                "task": stretch.subtask,
                "image": list(map(str, images)),
                f"action_{self.run.variant.value}_token": token,
                "state": {
                    kind.value: save(folder / f"state_{kind.value}_{row}.npy", states[kind][number]) for kind in Variant
                },
                "action": {
                    kind.value: save(folder / f"action_{kind.value}_{row}.npy", part.actions[number])
                    for kind, part in variants.items()
                },
                "conversations": [
                    {"from": "human", "value": instruction(moments[number].task, stretch, self.run, IMAGE)},
                    {"from": "gpt", "value": self._answer(stretch)},
                ],
            }
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _answer(self, stretch: Stretch) -> str:
        return (stretch.subtask if self.run.subtask is Subtask.answer else "") + "<action_token>"

    def _states(self, recording: Recording, windows: Windows) -> dict[Variant, NDArray[np.float64]]:
        places = chunk_rows(len(recording), windows.starts, self.run)[:, :-1]
        return {Variant.eepose: pose_states(recording.poses[places]), Variant.qpos: recording.joints[places]}


def save(path: Path, values: NDArray[np.float64] | NDArray[np.int64]) -> str:
    """Write an array; its path as a line gives it."""
    np.save(path, values, allow_pickle=False)
    return str(path)
