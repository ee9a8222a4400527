"""Where the checkpoints of a run lie, and which of them are whole.

OUTPUT/checkpoints/step_00000200/
    weights/         sharded weights and optimizer state
    recipe/          tokenizer, statistics, embodiments: how samples are made and read back
    config.yaml      the resolved settings
    progress.json    where the run was
    metadata.json    what this is; written last, so that a folder without it was never finished
"""

from __future__ import annotations

from pathlib import Path

from flagscale_vla.config.checks import ConfigError

CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
RECIPE = "recipe"
CONFIG = "config.yaml"
PROGRESS = "progress.json"
METADATA = "metadata.json"


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return output / CHECKPOINTS / f"step_{step:08d}"


def is_committed(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (folder / METADATA).is_file()


def committed(output: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return [folder for folder in sorted((output / CHECKPOINTS).glob("step_*")) if is_committed(folder)]


def uncommitted(output: Path) -> list[Path]:
    """What saves that were cut short have left behind."""
    return [folder for folder in sorted((output / CHECKPOINTS).glob("step_*")) if not is_committed(folder)]


def put_aside(folder: Path) -> Path:
    """Rename a checkpoint so that it no longer counts as one of its run; nothing of it is lost."""
    target = folder.with_name(f"damaged_{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged_{folder.name}_{number}")
    return folder.rename(target)


def latest(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None where it has none."""
    return max(committed(output), default=None)


def find_checkpoint(path: Path, key: str = "checkpoint") -> Path:
    """The checkpoint at `path`: itself, or the newest one of the run whose output folder it is.

    Args:
        path: a checkpoint or a run's output folder.
        key: the setting that `path` is the value of, for messages.

    Raises:
        ConfigError: where nothing is there, or only saves that were never finished.
    """
    if is_committed(path):
        return path
    found = latest(path)
    if found is not None:
        return found
    raise ConfigError(f"{key}={path}: {why_none(path)}. This would pass: the output folder of a run that has saved")


def why_none(path: Path) -> str:
    """Why no checkpoint is found at a path."""
    if not path.exists():
        return "there is no such folder"
    unfinished = [path] if (path / WEIGHTS).is_dir() else uncommitted(path)
    if unfinished:
        names = ", ".join(folder.name for folder in unfinished)
        return f"only saves that were cut short are there ({names}, without {METADATA})"
    return f"it is neither a checkpoint (no {METADATA}) nor a run's output (no {CHECKPOINTS}/step_*/{METADATA})"
