"""EO-1's YAML of datasets (`eo/data/schema.py`), every field checked.

Where EO-1's own code takes a field for something else than its words say, or passes over an error, this one does not:
`mix:w` is `mixture:w`, `true` is the sub-task's words, and a dataset that cannot be read is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flagscale_vla.config.checks import ConfigError, check
from flagscale_vla.config.convert_lerobot import Instruction
from flagscale_vla.data.convert.rows import Sampling, parse_sampling

MM_FIELDS = ("json_path", "sampling_strategy", "vision_base_path")
LEROBOT_FIELDS = (
    "repo_id",
    "root",
    "episodes",
    "delta_action",
    "state_mode",
    "train_subtask",
    "select_video_keys",
    "select_state_keys",
    "select_action_keys",
    "effector_indices",
    "weight",
)
HOME = "HF_LEROBOT_HOME"
"""What EO-1's own files write for `root` where they mean LeRobot's home."""
STATE_MODE = "MEAN_STD"
MIXTURE = re.compile(r"mix(?:ture)?:(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsDataset:
    """One entry of `mm_datasets`."""

    name: str
    path: Path
    vision: Path
    """folder that pictures and films are named from"""
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotDataset:
    """One entry of `lerobot_datasets`."""

    name: str
    repo_id: str
    """what interleaved rows call it"""
    path: Path
    episodes: tuple[int, ...]
    """none for all"""
    delta_action: bool
    instruction: Instruction
    subtask_share: float
    video_keys: tuple[str, ...]
    state_keys: tuple[str, ...]
    action_keys: tuple[str, ...]
    effector_indices: tuple[int, ...]
    weight: float
    """what its frames count for, each"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eo1Mixture:
    """All datasets of a YAML; names are unlike each other."""

    rows: tuple[RowsDataset, ...]
    robots: tuple[RobotDataset, ...]


def load_mixture(path: Path, base: Path, home: Path | None) -> Eo1Mixture:
    """Read a YAML.

    Args:
        base: folder that relative paths begin at.
        home: of LeRobot datasets without a root; None where nobody said.

    Raises:
        ConfigError: naming file, entry and field that cannot work.
    """
    content = read_yaml(path)
    unknown = sorted(set(content) - {"mm_datasets", "lerobot_datasets"})
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; there are: mm_datasets, lerobot_datasets")
    mm, lerobot = (read_entries(path, content, key) for key in ("mm_datasets", "lerobot_datasets"))
    if not mm and not lerobot:
        raise ConfigError(f"{path}: names no datasets; mm_datasets or lerobot_datasets must have an entry")
    stems = [Path(str(entry.values.get("json_path"))).stem for entry in mm]
    names = iter(unique_names([*stems, *(str(entry.values.get("repo_id")) for entry in lerobot)]))
    rows = tuple(read_rows_dataset(entry, next(names), base) for entry in mm)
    robots = tuple(read_robot_dataset(entry, next(names), base, home) for entry in lerobot)
    return Eo1Mixture(rows=rows, robots=robots)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it is missing, no YAML, or holds something else.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"mixture={path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"mixture={path}: must hold mm_datasets and lerobot_datasets")
    return {str(key): value for key, value in content.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One dataset's fields, and where they stand."""

    place: str
    values: Mapping[str, Any]

    def key(self, name: str) -> str:
        """A field's whole name."""
        return f"{self.place}.{name}"

    def check(self, name: str, kind: type | tuple[type, ...], rule: str, passes: object) -> Any:
        """The value of a field, None where it is missing or empty."""
        value = self.values.get(name)
        ok = value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
        check(ok, self.key(name), value, rule, passes)
        return value

    def required(self, name: str, passes: str) -> str:
        """A text that must be there."""
        value = self.values.get(name)
        check(isinstance(value, str) and bool(value), self.key(name), value, "must be a text", passes)
        return str(value)

    def listed(self, name: str, kind: type, passes: object) -> tuple[Any, ...]:
        """A list of one kind; empty where it is missing."""
        values = self.check(name, list, f"must be a list of {kind.__name__}", passes) or []
        ok = all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
        ok = ok and len(set(values)) == len(values)
        check(ok, self.key(name), values, f"must be a list of {kind.__name__}, each only once", passes)
        return tuple(values)


def read_entries(path: Path, content: Mapping[str, Any], key: str) -> list[_Entry]:
    """The entries of one of the two lists.

    Raises:
        ConfigError: it is no list of mappings, or has a field that there is not.
    """
    values = content.get(key) or []
    check(isinstance(values, list), f"{path}: {key}", values, "must be a list", "[]")
    fields = MM_FIELDS if key == "mm_datasets" else LEROBOT_FIELDS
    entries = [_Entry(place=f"{path}: {key}[{number}]", values=value) for number, value in enumerate(values)]
    for entry in entries:
        check(
            isinstance(entry.values, dict), entry.place, entry.values, "must be a mapping", "{" + fields[0] + ": ...}"
        )
        unknown = sorted(set(entry.values) - set(fields))
        if unknown:
            raise ConfigError(f"{entry.place}: unknown key {unknown[0]!r}; there are: {', '.join(fields)}")
    return entries


def unique_names(texts: Sequence[str]) -> list[str]:
    """Names of folders, and so of keys: other letters become `-`, and a name that comes again gets a number."""
    names: list[str] = []
    for text in texts:
        name = re.sub(r"[^A-Za-z0-9_\-]+", "-", text).strip("-") or "dataset"
        number = 1
        while (given := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names.append(given)
    return names


def read_rows_dataset(entry: _Entry, name: str, base: Path) -> RowsDataset:
    """An entry of `mm_datasets`."""
    path = base / entry.required("json_path", "demo_data/refcoco/refcoco.jsonl")
    strategy = entry.check("sampling_strategy", str, "must be a text", "all") or "all"
    vision = entry.check("vision_base_path", str, "must be a folder", "demo_data/refcoco")
    sampling = parse_sampling(entry.key("sampling_strategy"), strategy)
    return RowsDataset(name=name, path=path, vision=base / vision if vision else path.parent, sampling=sampling)


def read_robot_dataset(entry: _Entry, name: str, base: Path, home: Path | None) -> RobotDataset:
    """An entry of `lerobot_datasets`."""
    repo_id = entry.required("repo_id", "libero_spatial_no_noops_1.0.0_lerobot")
    root = entry.check("root", str, "must be a folder", "./demo_data")
    if root in (None, HOME) and home is None:
        rule = "lies in LeRobot's home, which lerobot_home must name"
        raise ConfigError(f"{entry.key('root')}={root}: {rule}. This would pass: lerobot_home=data/lerobot")
    rule = f"is applied when shards are read, by action.normalization; shards hold raw numbers, so only {STATE_MODE}"
    state_mode = entry.check("state_mode", str, "must be a text", STATE_MODE) or STATE_MODE
    check(state_mode == STATE_MODE, entry.key("state_mode"), state_mode, rule, STATE_MODE)
    instruction, share = read_subtask(entry)
    weight = entry.check("weight", (int, float), "must be a number", 1.0)
    check(weight is None or 0 < weight < float("inf"), entry.key("weight"), weight, "must be above zero", 1.0)
    return RobotDataset(
        name=name,
        repo_id=repo_id,
        path=(home if root in (None, HOME) and home is not None else base / str(root)) / repo_id,
        episodes=entry.listed("episodes", int, [0, 1]),
        delta_action=bool(entry.check("delta_action", bool, "must be true or false", "false")),
        instruction=instruction,
        subtask_share=share,
        video_keys=entry.listed("select_video_keys", str, ["observation.images.head"]),
        state_keys=entry.listed("select_state_keys", str, ["observation.state"]),
        action_keys=entry.listed("select_action_keys", str, ["action"]),
        effector_indices=entry.listed("effector_indices", int, [14, 15]),
        weight=1.0 if weight is None else float(weight),
    )


def read_subtask(entry: _Entry) -> tuple[Instruction, float]:
    """How instructions are made, and the share of sub-tasks where they are mixed.

    Raises:
        ConfigError: it is none of the four.
    """
    value = entry.values.get("train_subtask")
    text = str(value).lower()
    known = {"none": Instruction.task, "false": Instruction.task, "true": Instruction.subtask}
    if text in known or text == "cumulate":
        return known.get(text, Instruction.cumulate), 0.0
    found = MIXTURE.fullmatch(text)
    try:
        share = float(found.group(1)) if found else -1.0
    except ValueError:
        share = -1.0
    rule = "must be true, false, cumulate or mixture:w, with w in [0, 1]"
    check(0.0 <= share <= 1.0, entry.key("train_subtask"), value, rule, "mixture:0.9")
    return Instruction.mixture, share
