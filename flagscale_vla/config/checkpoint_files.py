"""What a checkpoint says about itself in `metadata.json`, and whether its files are as they were written.

`metadata.json` holds its own digest and that of every small file beside it, the manifests of the weights among them;
a manifest holds the digest of every tensor. So a single bit that changed anywhere is found, and told by its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from flagscale_vla.config.checkpoints import METADATA
from flagscale_vla.config.checks import ConfigError

FORMAT = 2
"""Version of the layout of a checkpoint folder."""


class DamagedError(ValueError):
    """A stored file that is not as it was written. Its message names the file, and the tensor where it is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Everything needed to judge a checkpoint without opening its weights."""

    format: int
    step: int
    model: dict[str, object]
    """the model's settings, dotted keys to values"""
    parallel: dict[str, object]
    """layout it was saved under; any other can load it; empty for imported weights"""
    special_tokens: dict[str, int]
    """ids of the special tokens the weights were trained with, by their names in `action.vocabulary`"""
    samples: str
    """digest of the training samples and their lengths, from which their order follows; empty for imported weights"""
    digests: dict[str, str]
    """sha256 of each small file beside the weights, statistics and manifests among them, by path in the folder"""
    versions: dict[str, str]
    git_hash: str


def file_digest(path: Path) -> str:
    """sha256 in hex of a small file."""
    return sha256(path.read_bytes()).hexdigest()


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 in hex of the named files, and of all files in the named sub-folders, by path in `folder`."""
    files = [path for name in names for path in [folder / name, *sorted((folder / name).rglob("*"))] if path.is_file()]
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def write_durably(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is whole and on disk."""
    scratch = path.with_name(f"{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Commit a checkpoint."""
    write_durably(folder / METADATA, _sealed(asdict(metadata)))


def _sealed(fields: dict[str, object]) -> str:
    """Fields as JSON, with the digest of all the rest as the last of them."""
    body = json.dumps(fields, sort_keys=True)
    return json.dumps({"fields": fields, "sha256": sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True)


def read_metadata(folder: Path) -> Metadata:
    """What a checkpoint says it is.

    Raises:
        ConfigError: where it has another format than this code reads.
        DamagedError: where it is not as it was written.
    """
    path = folder / METADATA
    fields = _unsealed(path)
    if fields["format"] != FORMAT:
        raise ConfigError(f"{path}: format {fields['format']} is not the {FORMAT} this version reads")
    return Metadata(**fields)


def _unsealed(path: Path) -> dict[str, Any]:
    """The fields of a `metadata.json`; formats before the second had no seal."""
    try:
        text = path.read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        if "format" in content:
            return content
        if text == _sealed(content["fields"]):
            return content["fields"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} was damaged: it cannot be read ({error!r}). Take another checkpoint") from error
    raise DamagedError(f"{path} was damaged: its contents do not have its own sha256. Take another checkpoint")


def verify_digests(folder: Path, metadata: Metadata) -> None:
    """Refuse a checkpoint of which a small file is missing or was changed after it was saved.

    Raises:
        DamagedError: naming the first such file.
    """
    found = file_digests(folder, metadata.digests)
    for name, digest in metadata.digests.items():
        if found.get(name) != digest:
            what = "was changed after it was saved" if name in found else "is missing"
            raise DamagedError(
                f"{folder / name} {what}: its sha256 is not the one in {METADATA}. Take another checkpoint"
            )
