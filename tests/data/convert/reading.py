"""What lies in shards, for tests of converters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from flagscale_vla.config.schema import settings_of
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.shards import list_shards
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import Image, RawSample, Text, Video
from tests.settings import composed

Run = TypeVar("Run")
Stored = tuple[RawSample, dict[str, Any]]
"""A sample and what its JSON keeps besides."""


def settings(kind: type[Run], name: str, *changes: str) -> Run:
    """The checked settings of a config with changes, which is not composed anew for each of them."""
    run = settings_of(OmegaConf.merge(composed(name), OmegaConf.from_dotlist(list(changes))))  # type: ignore[arg-type]
    assert isinstance(run, kind)
    return run


def stored_samples(folder: Path, split: str = "train") -> list[Stored]:
    """All samples of a split in order."""
    found: list[Stored] = []
    for shard in list_shards(folder, split):
        content = shard.read_bytes()
        for group in group_members(walk_tar(content, whole=True)):
            sample = parse_sample(shard.name, group, content)
            found.append((sample, parse_meta(shard.name, group, content)))
    return found


def refusals(folder: Path) -> dict[str, str]:
    """Reasons by place; of a file's place only its name and line."""
    entries = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
    return {entry["place"].rpartition("/")[2]: entry["reason"] for entry in entries}


def spell(sample: RawSample) -> list[str]:
    """A sample's segments, one word each: `u:` for a user's text, `a:` for an answer that is trained on, `p:` else."""
    return [spell_segment(segment) for segment in sample.segments]


def spell_segment(segment: object) -> str:
    """One segment."""
    match segment:
        case Text(text=text, supervised=True):
            return f"a:{text}"
        case Text(text=text, assistant=True):
            return f"p:{text}"
        case Text(text=text):
            return f"u:{text}"
        case Image(name=name) | Video(name=name):
            return f"<{name}>"
    return type(segment).__name__.lower()


def write_rows(path: Path, rows: Iterable[object]) -> None:
    """JSON lines; a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def turns(*texts: str) -> list[dict[str, str]]:
    """EO-1's spelling of turns."""
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


def texts_of(samples: Sequence[Stored]) -> list[list[str]]:
    """All samples, spelled."""
    return [spell(sample) for sample, _ in samples]
