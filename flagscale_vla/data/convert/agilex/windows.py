"""Rows of a recording become windows: a state, and the steps that lead on from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from flagscale_vla.config.convert_agilex import ARMS, AgilexRun, Variant
from flagscale_vla.data.convert.agilex.annotations import Stretch
from flagscale_vla.robots.poses import POSE, pose_states, pose_steps

WIDTH = ARMS * POSE
"""Numbers of a row: of the right arm, then of the left one."""
GRIPPERS = (POSE - 1, WIDTH - 1)
KEYS = {Variant.eepose: "action", Variant.qpos: "qpos"}
"""What each is called in an HDF5 file."""

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The rows of a stretch that move."""

    poses: Doubles
    """f64[T, 14] of both hands: x y z, roll pitch yaw, gripper"""
    joints: Doubles
    """f64[T, 14] of both arms: six joints, gripper"""
    rows: Integers
    """i64[T] ascending, in the episode"""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """W moments of a stretch."""

    starts: Integers
    """i64[W] places among the rows that move"""
    states: Doubles
    """f64[W, S0]"""
    actions: Doubles
    """f64[W, H, 14]"""
    valid: NDArray[np.bool_]
    """bool[W, H], false past the end"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a window has besides its numbers."""

    key: str
    """of the sample"""
    task: str
    """in the words chosen for it"""
    pictures: tuple[bytes, ...]
    """one for each camera"""


def read_recording(stretch: Stretch, run: AgilexRun) -> Recording:
    """The rows of a stretch, with grippers in the run's units, without those that stand still.

    Raises:
        ValueError: the file cannot be read or does not hold what it must, the stretch is not in it, or less than half
            a chunk of it moves.
    """
    poses, joints = (part[stretch.first : stretch.last] for part in read_arrays(Path(stretch.state), stretch.last))
    for part in (poses, joints):
        if not np.isfinite(part).all():
            raise ValueError(
                f"numbers are not finite: row {stretch.first + int(np.argwhere(~np.isfinite(part))[0, 0])}"
            )
        part[:, GRIPPERS] = part[:, GRIPPERS] * run.gripper_scale + run.gripper_offset
    moving = moving_rows(poses, run.static_tolerance)
    half = run.horizon * run.action_interval / 2
    if len(moving) < max(half, run.action_interval + 1):
        raise ValueError(f"stands still: {len(moving)} of {stretch.rows} rows move; half a chunk is {half:g}")
    return Recording(poses=poses[moving], joints=joints[moving], rows=stretch.first + moving)


def read_arrays(path: Path, rows: int) -> tuple[Doubles, Doubles]:
    """Poses and joints f64[T, 14] each, T at least `rows`.

    Raises:
        ValueError: the file is missing, damaged, or of another form.
    """
    if not path.is_file():
        raise ValueError(f"recording is missing: {path}")
    try:
        with h5py.File(path) as file:
            arrays = [np.asarray(file[key], np.float64) for key in KEYS.values()]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"recording cannot be read: {path}: {error}") from error
    shapes = [list(part.shape) for part in arrays]
    if shapes[0] != shapes[1] or shapes[0][1:] != [WIDTH]:
        raise ValueError(f"recording has another form: {path}: action and qpos are {shapes}, not [T, {WIDTH}] each")
    if len(arrays[0]) < rows:
        raise ValueError(f"recording is too short: {path}: has {len(arrays[0])} rows, end_frame={rows}")
    return arrays[0], arrays[1]


def moving_rows(rows: Doubles, tolerance: float) -> Integers:
    """Indices of the first row and of those that differ from the one kept before in some number by over `tolerance`."""
    kept = [0]
    for number in range(1, len(rows)):
        if np.abs(rows[number] - rows[kept[-1]]).max() > tolerance:
            kept.append(number)
    return np.asarray(kept, np.int64)


def window_starts(rows: int, run: AgilexRun) -> Integers:
    """Every `frame_interval`-th row whose chunk has no more than `tail` steps past the end, and the last such row."""
    last = max(0, rows - 1 - (run.horizon - run.tail) * run.action_interval)
    return np.unique([*range(0, last + 1, run.frame_interval), last])


def cut_windows(recording: Recording, run: AgilexRun) -> Windows:
    """All windows of a stretch, in the variant of the run."""
    starts = window_starts(len(recording), run)
    places = chunk_rows(len(recording), starts, run)
    eepose = run.variant is Variant.eepose
    rows = (recording.poses if eepose else recording.joints)[places]
    return Windows(
        starts=starts,
        states=pose_states(rows[:, 0]) if eepose else rows[:, 0],
        actions=(pose_steps if eepose else joint_steps)(rows[:, :-1], rows[:, 1:]),
        valid=np.diff(places, axis=1) > 0,
    )


def chunk_rows(rows: int, starts: Integers, run: AgilexRun) -> Integers:
    """The rows i64[W, H + 1] that the steps of chunks lead through.

    Past the end the row of the last whole step is repeated: nothing moves, and the gripper stays.
    """
    inside = (rows - 1 - starts) // run.action_interval
    steps = np.minimum(np.arange(run.horizon + 1), inside[:, None])
    return np.asarray(starts[:, None] + steps * run.action_interval)


def joint_steps(start: Doubles, end: Doubles) -> Doubles:
    """The steps [..., 14] from joints to joints: differences, and of a gripper where it ends."""
    steps = end - start
    steps[..., GRIPPERS] = end[..., GRIPPERS]
    return steps


def follow_joints(start: Doubles, steps: Doubles) -> Doubles:
    """The joints [T, 14] that steps [T, 14] lead to from `start` [14]: the inverse of `joint_steps`."""
    rows = start + np.cumsum(steps, axis=0)
    rows[:, GRIPPERS] = steps[:, GRIPPERS]
    return rows
