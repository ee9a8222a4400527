"""What the numbers of a robot's state and action mean, kept as `embodiments.json` beside the shards."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_NAME = "embodiments.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Embodiment:
    """One robot as its data names it: a name for each dim of state and action, its cameras in prompt order.

    Raises:
        ValueError: names that are missing or doubled, a rate below 1, or scales that do not fit the action.
    """

    name: str
    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: tuple[str, ...]
    """none for a robot whose episodes were recorded without pictures"""
    fps: int
    """control steps, and so action steps, per second"""
    action_scale: tuple[float, ...] = ()
    """metres or radians that one unit of each action dim asks for, 0 for a dim that is neither, as a gripper; empty for
    unknown"""

    def __post_init__(self) -> None:
        for field in ("state", "action", "cameras"):
            names = {"state": self.state, "action": self.action, "cameras": self.cameras}[field]
            if (not names and field != "cameras") or len(set(names)) != len(names):
                raise ValueError(f"embodiment {self.name!r}: {field}={list(names)} must hold names, each only once")
        if self.fps < 1:
            raise ValueError(f"embodiment {self.name!r}: fps={self.fps} must be at least 1, as 20")
        self._check_scale()

    def _check_scale(self) -> None:
        scale, dims = list(self.action_scale), len(self.action)
        if scale and len(scale) != dims:
            raise ValueError(
                f"embodiment {self.name!r}: action_scale={scale} must hold a number for each of the {dims} action dims "
                f"{list(self.action)}, or none"
            )
        if not all(math.isfinite(size) and size >= 0 for size in scale):
            raise ValueError(f"embodiment {self.name!r}: action_scale={scale} must be finite and not negative")


def save_embodiments(folder: Path, embodiments: Iterable[Embodiment]) -> None:
    """Write `folder/embodiments.json`, replacing it in one step."""
    path = folder / FILE_NAME
    partial = path.with_suffix(".tmp")
    text = json.dumps({embodiment.name: asdict(embodiment) for embodiment in embodiments}, indent=2)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def load_embodiments(folder: Path) -> dict[str, Embodiment]:
    """The robots in `folder/embodiments.json`, by name.

    Raises:
        ValueError: the file is missing, is not JSON, or an entry lacks a field or has an unknown one.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ValueError(f"{path} is missing: a folder of shards names its robots there; `record_demo` writes it")
    return read_embodiments(path.read_bytes(), str(path))


def read_embodiments(content: bytes, where: str) -> dict[str, Embodiment]:
    """The robots in what `embodiments.json` holds, by name; `where` it lies is for messages.

    Raises:
        ValueError: it is not JSON, or an entry lacks a field or has an unknown one.
    """
    try:
        entries = json.loads(content)
        return {name: embodiment_from_json(name, entry) for name, entry in entries.items()}
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{where} cannot be read: {type(error).__name__} {error}") from error


def embodiment_from_json(name: str, entry: dict[str, object]) -> Embodiment:
    """One entry of `embodiments.json`; lists become tuples.

    Raises:
        TypeError: a field is missing or unknown.
        ValueError: the entry's own name is not the one it is filed under.
    """
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    embodiment = Embodiment(**fields)  # type: ignore[arg-type]
    if embodiment.name != name:
        raise ValueError(f"embodiment {name!r} calls itself {embodiment.name!r}; the two must agree")
    return embodiment
