"""The page of a training run, made from what the run has left in its output folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flagscale_vla.reports.pages import figure_uri, picture_uri, write_report
from flagscale_vla.train.curves import draw_actions, draw_curves
from flagscale_vla.train.metrics import Line
from flagscale_vla.train.pictures import View


def write_samples(path: Path, views: Iterable[View]) -> None:
    """Keep the first step's samples for the page, pictures drawn, so that a resumed run shows them too."""
    entries = [
        {
            "key": view.key,
            "spans": [{"text": span.text, "supervised": span.supervised} for span in view.spans],
            "images": [picture_uri(image) for image in view.images],
            "chunks": [
                {"plot": figure_uri(draw_actions(chunk.values, chunk.valid, chunk.names)), "time": chunk.time}
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
    folder: Path,
    *,
    remark: str,
    summary: Mapping[str, object],
    lines: Sequence[Line],
    samples: Sequence[Mapping[str, object]],
    config: str,
) -> None:
    """Write the page of a run into its folder."""
    sources = lines[-1].sources if lines else {}
    fields = {
        "title": f"Training {folder.name}",
        "remark": remark,
        "summary": summary,
        "samples": samples,
        "sources": sources,
    }
    write_report(folder, "train.html.j2", fields | {"curves": figure_uri(draw_curves(lines)), "config": config})
