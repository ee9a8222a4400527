"""`report.html`: one file that shows what a job did, its pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Picture

from flagscale_vla.reports.outputs import replace_text

REPORT = "report.html"
DOTS_PER_INCH = 90


def write_report(folder: Path, template: str, values: Mapping[str, object]) -> Path:
    """Fill one of this room's templates and write it as `report.html`; returns its path."""
    loader = jinja2.PackageLoader("flagscale_vla.reports", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    path = folder / REPORT
    replace_text(path, environment.get_template(template).render(**values))
    return path


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture u8[h, w, 3] as a `data:` address, so that a report is one file."""
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as a `data:` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
