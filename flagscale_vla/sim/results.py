"""What every job of this room leaves in its output folder besides its own files: settings and figures."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image as Picture

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.provenance import git_hash, package_versions

CONFIG = "config.yaml"
SUMMARY = "summary.json"
REPORT = "report.html"


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


def write_report(folder: Path, template: str, values: Mapping[str, object]) -> Path:
    """Fill one of this room's templates and write it as `report.html`."""
    loader = jinja2.PackageLoader("flagscale_vla.sim", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    path = folder / REPORT
    replace_text(path, environment.get_template(template).render(**values))
    return path


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step."""
    partial = path.with_suffix(path.suffix + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture u8[h, w, 3] as a `data:` address, so that a report is one file."""
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as a `data:` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", dpi=90)
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
