"""Question samples drawn for a page: pictures with the boxes and points of the answers, and the conversation."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw

from flagscale_vla.reports.pages import picture_uri

ENLARGED = 3
"""Each pixel becomes so many squared: frames are small."""
PLACED = {"box", "point", "trajectory"}
"""The kinds whose answers are places in the picture."""
COLOR = (255, 225, 0)
RADIUS = 4

Entry = dict[str, Any]


def read_examples(shards: Sequence[Path], each: int) -> list[Entry]:
    """The first `each` samples of every kind for a page, from different shards where there are enough."""
    found: dict[str, list[Entry]] = {}
    for shard in shards:
        here: set[str] = set()
        for header, members in read_samples(shard):
            kind = header["kind"]
            if kind not in here and len(found.setdefault(kind, [])) < each:
                found[kind].append(example(header, members))
                here.add(kind)
    return [entry for kind in found for entry in found[kind]]


def read_samples(shard: Path) -> Iterator[tuple[Entry, dict[str, bytes]]]:
    """Each sample's `KEY.json` and other members."""
    members: dict[str, bytes] = {}
    with tarfile.open(shard) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            key, _, name = info.name.partition(".")
            members[name] = file.read()
            if name == "json":
                yield json.loads(members.pop("json")) | {"key": key}, members
                members = {}


def example(header: Entry, members: dict[str, bytes]) -> Entry:
    """One sample as a page shows it."""
    segments = header["segments"]
    answers = [segment["text"] for segment in segments if segment.get("supervised")]
    places = json.loads(answers[-1]) if header["kind"] in PLACED else []
    names = [segment["image"] for segment in segments if "image" in segment]
    frames = [decode(members[name]) for name in names]
    drawn = [draw_places(frame, places) for frame in frames]
    return {
        "key": header["key"],
        "kind": header["kind"],
        "frame": f"{header['frame']} of {header['num_frames']}",
        "picture": picture_uri(np.concatenate(drawn, axis=1)),
        "lines": [line for line in map(told, segments) if line],
    }


def decode(encoded: bytes) -> NDArray[np.uint8]:
    """A stored frame u8[h, w, 3], enlarged."""
    frame = np.asarray(Picture.open(io.BytesIO(encoded)).convert("RGB"))
    return frame.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def draw_places(frame: NDArray[np.uint8], places: Sequence[Entry]) -> NDArray[np.uint8]:
    """Boxes and points on an enlarged frame; several points without names are joined in their order."""
    picture = Picture.fromarray(frame)
    pen = ImageDraw.Draw(picture)
    path = [middle(place["point_2d"]) for place in places if "point_2d" in place and "label" not in place]
    pen.line(path, fill=COLOR)
    for place in places:
        if "bbox_2d" in place:
            left, top, right, bottom = place["bbox_2d"]
            corners = [left * ENLARGED, top * ENLARGED, (right + 1) * ENLARGED - 1, (bottom + 1) * ENLARGED - 1]
            pen.rectangle(corners, outline=COLOR)
        else:
            x, y = middle(place["point_2d"])
            pen.ellipse([x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS], outline=COLOR, width=2)
    return np.asarray(picture)


def middle(place: Sequence[int]) -> tuple[float, float]:
    """Of a pixel, once enlarged."""
    return (place[0] + 0.5) * ENLARGED, (place[1] + 0.5) * ENLARGED


def told(segment: Entry) -> Entry | None:
    """A segment as a line of the conversation; None for pictures, which are shown."""
    if "text" in segment:
        return {"who": "answer" if segment["supervised"] else "question", "text": segment["text"]}
    if "action" in segment:
        return {"who": "answer", "text": "(actions)"}
    return {"who": "question", "text": "(state)"} if "state" in segment else None
