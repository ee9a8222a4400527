"""`report.html`: one file that shows a run, made from what the run has left in its output folder."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from flagscale_vla.train.curves import draw_actions, draw_curves
from flagscale_vla.train.metrics import Line
from flagscale_vla.train.pictures import View

TEMPLATE = Path(__file__).with_name("report.html.j2")


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture u8[h, w, 3] as PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def text(content: bytes) -> str:
    """Bytes as the base64 that a page embeds."""
    return base64.b64encode(content).decode()


def write_samples(path: Path, views: Iterable[View]) -> None:
    """Keep the first step's samples for the page, pictures drawn, so that a resumed run shows them too."""
    entries = [
        {
            "key": view.key,
            "spans": [{"text": span.text, "supervised": span.supervised} for span in view.spans],
            "images": [text(png(image)) for image in view.images],
            "chunks": [
                {"plot": text(draw_actions(chunk.values, chunk.valid, chunk.names)), "time": chunk.time}
                for chunk in view.chunks
            ],
        }
        for view in views
    ]
    path.write_text(json.dumps(entries))


def read_samples(path: Path) -> list[dict[str, object]]:
    """What `write_samples` kept; none where it never did."""
    return json.loads(path.read_text()) if path.is_file() else []


def write_page(
    path: Path,
    *,
    title: str,
    remark: str,
    summary: Mapping[str, object],
    lines: Sequence[Line],
    samples: Sequence[Mapping[str, object]],
    config: str,
) -> None:
    """Write the page; every picture is inside the one file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text())
    curves = text(draw_curves(lines))
    fields = {"title": title, "remark": remark, "summary": summary, "samples": samples, "config": config}
    path.write_text(template.render(curves=curves, **fields))
