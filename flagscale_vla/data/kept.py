"""Files kept beside the shards, so that a folder is looked through only once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from flagscale_vla.data.shards import list_shards

KEPT_FOLDER = ".index"


def find_shards(folder: Path, split: str) -> list[Path]:
    """The shards of a split.

    Raises:
        ValueError: there are none.
    """
    shards = list_shards(folder, split)
    if not shards:
        raise ValueError(f"{folder} holds no {split}-*.tar; `python run.py --config-name record_demo` makes some")
    return shards


def kept_path(folder: Path, split: str, layout: list[object], suffix: str) -> Path:
    """Where something found in a split is kept. It changes with the shards' sizes and times, and with `layout`."""
    shards = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in find_shards(folder, split)]
    content = json.dumps([shards, layout])
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    return folder / KEPT_FOLDER / f"{split}-{digest}{suffix}"


def keep(path: Path, content: bytes) -> None:
    """Write a kept file in one step.

    Raises:
        ValueError: the folder cannot be written to.
    """
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        rule = "what is found in shards is kept beside them, so their folder must be writable once"
        raise ValueError(f"{path} cannot be written ({error}): {rule}") from error
