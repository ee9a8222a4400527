"""What a conversion leaves besides shards: robots, refusals, figures, and a page with the first samples."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.convert.converter import Refusal
from flagscale_vla.data.convert.pictures import decode_picture, fit_sides, resize
from flagscale_vla.data.convert.unit import UnitLog
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.shards import SPLITS, list_shards
from flagscale_vla.data.store import LocalStore
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import Image, RawSample, Text, Video
from flagscale_vla.reports.outputs import replace_text, write_summary
from flagscale_vla.reports.pages import picture_uri, write_report
from flagscale_vla.robots.embodiments import Embodiment, save_embodiments

logger = logging.getLogger(__name__)

REFUSED = "refused.jsonl"
SHOWN_SHARDS = 8
"""Shards whose first sample is on the page, spread evenly."""
SHOWN_PICTURES = 6
SHOWN_SIDE = 160
SHOWN_LETTERS = 600


def conclude(
    folder: Path, embodiments: Mapping[str, Embodiment], logs: Sequence[UnitLog], new_samples: int, seconds: float
) -> None:
    """Write `embodiments.json`, `refused.jsonl`, `summary.json` and `report.html`.

    Args:
        new_samples: those converted in this start of the run.
        seconds: what this start took.
    """
    save_embodiments(folder, embodiments.values())
    refused = [(log.unit, refusal) for log in logs for refusal in log.refused]
    write_refused(folder, refused)
    figures = count(logs, new_samples, seconds)
    write_summary(folder, figures, device="cpu")
    values: dict[str, object] = {
        "figures": figures,
        "reasons": reason_rows([refusal for _, refusal in refused]),
        "robots": embodiments,
    }
    values["samples"] = first_samples(folder)
    write_report(folder, "convert.html.j2", values)
    logger.info(
        "%d samples for training and %d held out; %d rows refused%s",
        figures["samples"],
        figures["heldout_samples"],
        figures["refused"],
        f", listed in {folder / REFUSED}: {figures['refused_per_reason']}" if figures["refused"] else "",
    )


def write_refused(folder: Path, refused: Iterable[tuple[str, Refusal]]) -> None:
    """One line per refusal, given with its unit: unit, place, reason, rows."""
    lines = [json.dumps({"unit": unit} | asdict(refusal), ensure_ascii=False) for unit, refusal in refused]
    replace_text(folder / REFUSED, "".join(f"{line}\n" for line in lines))


def count(logs: Sequence[UnitLog], new_samples: int, seconds: float) -> dict[str, object]:
    """The figures of `summary.json`."""
    samples = {split: sum(log.samples for log in logs if log.split == split) for split in SPLITS}
    skipped: Counter[str] = Counter()
    for log in logs:
        skipped.update(log.skipped)
    reasons = count_reasons([refusal for log in logs for refusal in log.refused])
    return {
        "samples": samples["train"],
        "heldout_samples": samples["heldout"],
        "steps": sum(log.steps for log in logs if log.split == "train"),
        "heldout_steps": sum(log.steps for log in logs if log.split == "heldout"),
        "shards": sum(log.samples > 0 for log in logs),
        "refused": sum(reasons.values()),
        "refused_per_reason": dict(reasons.most_common()),
        "skipped": dict(sorted(skipped.items())),
        "seconds": round(seconds, 2),
        "process_seconds": round(sum(log.seconds for log in logs), 2),
        "samples_per_second": round(new_samples / seconds, 1),
    }


def count_reasons(refusals: Sequence[Refusal]) -> Counter[str]:
    """Rows refused, by kind."""
    kinds: Counter[str] = Counter()
    for refusal in refusals:
        kinds[kind_of(refusal.reason)] += refusal.rows
    return kinds


def kind_of(reason: str) -> str:
    """What kind of refusal it is: the reason up to its first colon."""
    return reason.partition(": ")[0]


def reason_rows(refusals: Sequence[Refusal]) -> list[dict[str, object]]:
    """Per kind of refusal, how many rows and the first."""
    kinds = count_reasons(refusals)
    firsts = {kind_of(refusal.reason): refusal for refusal in reversed(refusals)}
    return [{"reason": kind, "count": number, "first": asdict(firsts[kind])} for kind, number in kinds.most_common()]


def first_samples(folder: Path) -> list[dict[str, object]]:
    """The first sample of some shards, for the page."""
    shards = [path for split in SPLITS for path in list_shards(folder, split)]
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(SHOWN_SHARDS, len(shards))).round().astype(int))
    return [describe(first_sample(shards[place])) for place in chosen.tolist()]


def first_sample(shard: Path) -> RawSample:
    """The first sample of a shard that this run has written."""
    with LocalStore(shard.parent).whole(shard.name) as buffer:
        return parse_sample(shard.name, next(group_members(walk_tar(buffer, whole=True))), buffer)


def describe(sample: RawSample) -> dict[str, object]:
    """Key, text and pictures of a sample."""
    texts = [segment.text for segment in sample.segments if isinstance(segment, Text)]
    pictures = [segment.encoded for segment in sample.segments if isinstance(segment, Image)]
    pictures += [segment.frames[0] for segment in sample.segments if isinstance(segment, Video)]
    shown = [picture_uri(thumbnail(encoded)) for encoded in pictures[:SHOWN_PICTURES]]
    return {"key": sample.key, "text": " · ".join(texts)[:SHOWN_LETTERS], "pictures": shown}


def thumbnail(encoded: bytes) -> NDArray[np.uint8]:
    """A small copy u8[h, w, 3] of a picture."""
    pixels = decode_picture(encoded)
    return resize(pixels, fit_sides(pixels.shape[0], pixels.shape[1], SHOWN_SIDE))
