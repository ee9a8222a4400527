"""What a checkpoint says about itself in `metadata.json`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from flagscale_vla.config.checkpoints import METADATA
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.data.index import Index

FORMAT = 1
"""Version of the layout of a checkpoint folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Everything needed to judge a checkpoint without opening its weights."""

    format: int
    step: int
    model: dict[str, object]
    """the model's settings, dotted keys to values"""
    parallel: dict[str, object]
    """layout it was saved under; any other can load it"""
    special_tokens: dict[str, int]
    """ids of the special tokens the weights were trained with, by their names in `action.vocabulary`"""
    samples: str
    """digest of the training samples and their lengths, from which their order follows"""
    digests: dict[str, str]
    """sha256 of each small file beside the weights, statistics among them, by path in the folder"""
    versions: dict[str, str]
    git_hash: str


def samples_digest(index: Index) -> str:
    """sha256 in hex of all that the order of samples follows from; it does not depend on where the shards lie."""
    digest = sha256(json.dumps([index.shards, index.keys]).encode())
    digest.update(index.shard.tobytes() + index.lengths.tobytes())
    return digest.hexdigest()


def file_digests(folder: Path, names: list[str]) -> dict[str, str]:
    """sha256 in hex of the named files, and of all files in the named sub-folders, by path in `folder`."""
    files = [path for name in names for path in [folder / name, *sorted((folder / name).rglob("*"))] if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Commit a checkpoint: the marker appears under its name only when it is whole and on disk."""
    scratch = folder / f"{METADATA}.tmp"
    with scratch.open("w") as file:
        json.dump(asdict(metadata), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(folder / METADATA)


def read_metadata(folder: Path) -> Metadata:
    """What a checkpoint says it is.

    Raises:
        ConfigError: where it has another format than this code writes.
    """
    fields = json.loads((folder / METADATA).read_text())
    if fields["format"] != FORMAT:
        raise ConfigError(f"{folder / METADATA}: format {fields['format']} is not the {FORMAT} this version reads")
    return Metadata(**fields)


def verify_digests(folder: Path, metadata: Metadata) -> None:
    """Refuse a checkpoint of which a small file is missing or was changed after it was saved.

    Raises:
        ConfigError: naming the first such file.
    """
    found = file_digests(folder, list(metadata.digests))
    for name, digest in metadata.digests.items():
        if found.get(name) != digest:
            what = "was changed after it was saved" if name in found else "is missing"
            raise ConfigError(
                f"{folder / name} {what}: its sha256 is not the one in {METADATA}. Take another checkpoint"
            )
