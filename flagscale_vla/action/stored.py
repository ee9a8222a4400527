"""How an action tokenizer lies on disk: a JSON that names its kind, robots and files, and the files beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flagscale_vla.action.units import Units
from flagscale_vla.robots.embodiments import embodiment_from_json
from flagscale_vla.robots.statistics import statistics_from_json, statistics_to_json

ACTION_TOKENIZER_FILE = "action_tokenizer.json"
WEIGHTS_FILE = "action_tokenizer.safetensors"
VERSION = 1
DIGESTS = "sha256"
"""The entry of the JSON that holds digests: of each file beside it, and of the JSON itself without this entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """All that a tokenizer is made of."""

    kind: str
    config: Mapping[str, Any]
    """its settings, as JSON can hold them"""
    units: Units
    files: Mapping[str, bytes]
    """by name, as `action_tokenizer.safetensors`"""


def write_stored(folder: Path, stored: Stored) -> None:
    """Write the files and then, in one step, the JSON that makes them count."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "version": VERSION,
        "kind": stored.kind,
        "config": dict(stored.config),
        "embodiments": {name: asdict(robot) for name, robot in stored.units.embodiments.items()},
        "statistics": statistics_to_json(stored.units.statistics),
    }
    digests = {name: _digest(written) for name, written in stored.files.items()}
    digests[ACTION_TOKENIZER_FILE] = content_digest(content)
    for name, written in stored.files.items():
        (folder / name).write_bytes(written)
    partial = folder / f"{ACTION_TOKENIZER_FILE}.tmp"
    partial.write_text(json.dumps(content | {DIGESTS: digests}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / ACTION_TOKENIZER_FILE)


def read_stored(folder: Path) -> Stored:
    """What `write_stored` wrote, each digest checked.

    Raises:
        ValueError: a file is missing, damaged, of another version or not an action tokenizer's; or the statistics are
            not those of its robots.
    """
    content = _read_content(folder / ACTION_TOKENIZER_FILE)
    digests = content.pop(DIGESTS)
    _check_digest(folder / ACTION_TOKENIZER_FILE, digests.pop(ACTION_TOKENIZER_FILE), content_digest(content))
    files = {name: _read_file(folder / name, digest) for name, digest in digests.items()}
    robots = {name: embodiment_from_json(name, entry) for name, entry in content["embodiments"].items()}
    try:
        units = Units(robots, statistics_from_json(content["statistics"]))
    except ValueError as error:
        raise ValueError(f"{folder / ACTION_TOKENIZER_FILE}: {error}") from error
    return Stored(kind=content["kind"], config=content["config"], units=units, files=files)


def _read_content(path: Path) -> dict[str, Any]:
    """The JSON, which must be an action tokenizer's and of this version."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: a folder with an action tokenizer holds it; a tokenizer job writes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    keys = {"version", "kind", "config", "embodiments", "statistics", DIGESTS}
    if not isinstance(content, dict) or not keys <= content.keys() or ACTION_TOKENIZER_FILE not in content[DIGESTS]:
        raise ValueError(f"{path} is not an action tokenizer's: it must be an object with {sorted(keys)}")
    if content["version"] != VERSION:
        raise ValueError(f"{path} has version {content['version']}; this code reads version {VERSION}")
    return content


def _read_file(path: Path, digest: str) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {ACTION_TOKENIZER_FILE} beside it names it")
    content = path.read_bytes()
    _check_digest(path, digest, _digest(content))
    return content


def _check_digest(path: Path, wanted: str, found: str) -> None:
    if wanted != found:
        raise ValueError(
            f"{path} is damaged or was changed: sha256 is {found[:12]}..., it was saved as {wanted[:12]}..."
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_digest(content: Mapping[str, Any]) -> str:
    """Of the values alone: spaces and the order of keys do not count."""
    return _digest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
