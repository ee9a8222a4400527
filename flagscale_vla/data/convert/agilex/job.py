"""Job `convert_agilex`: RoboBrain-X0's AgileX recordings become shards and, where asked, its own JSON lines too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.config.convert_agilex import AgilexRun, Subtask, Variant
from flagscale_vla.data.convert.agilex.annotations import CAMERAS, Stretch, read_annotations
from flagscale_vla.data.convert.agilex.prompts import choose_phrase, instruction, load_phrases, phrases_of
from flagscale_vla.data.convert.agilex.robobrain import JsonLines
from flagscale_vla.data.convert.agilex.windows import Moment, Recording, Windows, cut_windows, read_recording
from flagscale_vla.data.convert.converter import Converted, Refusal, Skipped, Unit
from flagscale_vla.data.convert.films import measure
from flagscale_vla.data.convert.job import convert
from flagscale_vla.data.convert.pictures import PictureRule
from flagscale_vla.data.convert.plan import Row, group_rows
from flagscale_vla.data.lerobot.video import read_frames
from flagscale_vla.records import Action, Image, Segment, State, Text
from flagscale_vla.robots.embodiments import Embodiment

SIDES = ("right", "left")
JOINTS = tuple(f"joint_{number}" for number in range(1, 7))
POSE_STATE = ("x", "y", "z", "r11", "r21", "r31", "r12", "r22", "r32")
"""Position, and the first two columns of the rotation matrix."""
POSE_STEP = ("dx", "dy", "dz", "drx", "dry", "drz")


def run(run: AgilexRun) -> None:
    """Convert all stretches.

    Raises:
        ValueError: annotations cannot be read, the tokenizer does not know the robot, or too much is refused.
        OSError: a process died, or the folder cannot be written.
    """
    converter = AgilexConverter(run=run)
    converter.check()
    convert(converter, run)


def embodiment_of(run: AgilexRun) -> Embodiment:
    """The robot: the right arm first, as in the recordings."""
    eepose = run.variant is Variant.eepose
    state, action = (POSE_STATE, POSE_STEP) if eepose else (JOINTS, JOINTS)
    return Embodiment(
        name=run.robot,
        state=tuple(f"{side}_{name}" for side in SIDES for name in (*state, "gripper")),
        action=tuple(f"{side}_{name}" for side in SIDES for name in (*action, "gripper")),
        cameras=tuple(CAMERAS),
        fps=run.fps // run.action_interval,
        action_scale=tuple(size for _ in SIDES for size in (*[1.0] * len(action), 0.0)),
    )


@dataclass(frozen=True, kw_only=True)
class AgilexConverter:
    """Stretches of episodes to samples; those of one episode are in one split."""

    run: AgilexRun

    @cached_property
    def rule(self) -> PictureRule:
        """How pictures are stored."""
        return PictureRule.of(self.run)

    def check(self) -> None:
        """Refuse what would stop the run later.

        Raises:
            ValueError: the phrases cannot be read, or the tokenizer does not know the robot.
        """
        if self.run.jsonl:
            check_tokenizer(self.run)
        if self.run.phrases:
            load_phrases(Path(self.run.phrases))

    def embodiments(self) -> Mapping[str, Embodiment]:
        """The one robot."""
        return {self.run.robot: embodiment_of(self.run)}

    def units(self) -> Sequence[Unit]:
        """Stretches in the order of the annotations; what is none is refused with them."""
        return group_rows(map(self._row, read_annotations(self.run)), self.run)

    def samples(self, unit: Unit) -> Iterator[Converted | Refusal | Skipped]:
        """All windows of all stretches of a unit."""
        assert isinstance(unit.payload, tuple)
        with ExitStack() as stack:
            lines = stack.enter_context(JsonLines(self.run, unit.name)) if self.run.jsonl else None
            for stretch in unit.payload:
                if isinstance(stretch, Refusal):
                    yield stretch
                    continue
                try:
                    recording = read_recording(stretch, self.run)
                    windows = cut_windows(recording, self.run)
                    moments = self._moments(stretch, recording, windows)
                except ValueError as error:
                    yield Refusal(place=stretch.place, reason=str(error))
                    continue
                if lines is not None:
                    lines.write(stretch, recording, windows, moments)
                yield Skipped(reason="row stands still", count=stretch.rows - len(recording))
                yield Skipped(reason="row between samples", count=len(recording) - len(windows.starts))
                for number, moment in enumerate(moments):
                    yield self._sample(stretch, recording, windows, moment, number)

    def _row(self, stretch: Stretch | Refusal) -> Row:
        if isinstance(stretch, Refusal):
            return Row(name=stretch.place, samples=0, payload=stretch)
        samples = -(-stretch.rows // self.run.frame_interval)
        return Row(name=stretch.state, samples=samples, payload=stretch)

    @cached_property
    def _phrases(self) -> dict[str, list[str]]:
        return load_phrases(Path(self.run.phrases)) if self.run.phrases else {}

    def _moments(self, stretch: Stretch, recording: Recording, windows: Windows) -> list[Moment]:
        """Every window's words and frames.

        Raises:
            ValueError: the task has no words, or a film is missing, damaged, or shorter than the recording.
        """
        ways = phrases_of(stretch, self._phrases)
        wanted = recording.rows[windows.starts]
        films = [map(self.rule.encode, read_rows(Path(film), stretch.last, wanted)) for film in stretch.films]
        robot = re.sub(r"[^A-Za-z0-9_-]", "-", self.run.robot)
        keys = [f"{robot}-{stretch.number:06d}-{row:06d}" for row in wanted.tolist()]
        return [
            Moment(key=key, task=choose_phrase(ways, self.run.phrasing, key), pictures=pictures)
            for key, pictures in zip(keys, zip(*films, strict=True), strict=True)
        ]

    def _sample(
        self, stretch: Stretch, recording: Recording, windows: Windows, moment: Moment, number: int
    ) -> Converted:
        robot, start = self.run.robot, int(windows.starts[number])
        texts = [Text(text=instruction(moment.task, stretch, self.run), supervised=False)]
        if self.run.subtask is Subtask.answer and stretch.subtask:
            texts.append(Text(text=stretch.subtask, supervised=True))
        segments: tuple[Segment, ...] = (
            *(Image(name=name, encoded=seen) for name, seen in zip(CAMERAS, moment.pictures, strict=True)),
            State(values=windows.states[number].astype(np.float32), robot=robot),
            *texts,
            Action(values=windows.actions[number].astype(np.float32), valid=windows.valid[number], robot=robot),
        )
        meta = {
            "source": self.run.source,
            "task": stretch.task,
            "episode": stretch.number,
            "frame": start,
            "row": int(recording.rows[start]),
            "recording": stretch.state,
            "fps": self.run.fps,
            "instruction": moment.task,
            "subtask": stretch.subtask,
        }
        return Converted(key=moment.key, segments=segments, meta=meta)


def read_rows(path: Path, rows: int, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The frames u8[h, w, 3] of a film that has one for each row, at these rows in ascending order.

    Raises:
        ValueError: the film is missing or damaged, or has fewer frames than `rows`.
    """
    if not path.is_file():
        raise ValueError(f"film is missing: {path}")
    try:
        total, rate = measure(path)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"film cannot be read: {path}: {error}") from error
    if total < rows or rate <= 0:
        raise ValueError(f"film is too short: {path}: {total} frames at {rate:g} a second, end_frame={rows}")
    # The film's own rate: one of 29.97 frames a second has a frame for each row too.
    yield from read_frames(path, (wanted / rate).tolist(), rate)


def check_tokenizer(run: AgilexRun) -> None:
    """Refuse a tokenizer that cannot write the run's chunks.

    Raises:
        ValueError: it does not know the robot, or another layout or horizon.
    """
    tokenizer = load_action_tokenizer(Path(run.tokenizer))
    tokenizer.grammar(run.robot, run.horizon)
    known, wanted = tokenizer.embodiments[run.robot].action, embodiment_of(run).action
    if known != wanted:
        raise ValueError(f"tokenizer={run.tokenizer} knows robot {run.robot!r} with {list(known)}, not {list(wanted)}")
