"""What a job leaves in its output folder besides its own files: settings and figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.provenance import git_hash, package_versions

CONFIG = "config.yaml"
SUMMARY = "summary.json"


def settings_yaml(run: object) -> str:
    """The resolved settings of a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def keep_settings(run: object, folder: Path, free: Sequence[str]) -> None:
    """Write `config.yaml`, or, where an earlier start of the same run did, see that nothing but `free` differs.

    Raises:
        ConfigError: the folder holds results of other settings; names the keys.
    """
    path = folder / CONFIG
    if path.is_file():
        saved, now = OmegaConf.load(path), OmegaConf.create(settings_yaml(run))
        keys = [key for key in sorted(set(saved) | set(now)) if saved.get(key) != now.get(key) and key not in free]
        lines = [f"{key}: saved with {saved.get(key)}, asked for {now.get(key)}" for key in keys]
        if lines:
            raise ConfigError(
                f"output={folder} holds results of other settings:\n  "
                + "\n  ".join(lines)
                + "\nGive the saved values to go on, or another output= to start afresh"
            )
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, settings_yaml(run))


def write_summary(folder: Path, figures: Mapping[str, object], device: str) -> Path:
    """Write `summary.json`: the figures, then what made them."""
    origin = {"device": device, "versions": package_versions(), "git": git_hash()}
    path = folder / SUMMARY
    replace_text(path, json.dumps(dict(figures) | origin, indent=2) + "\n")
    return path


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step."""
    partial = path.with_suffix(path.suffix + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
