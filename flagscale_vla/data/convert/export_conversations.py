"""Job `export_conversations`: shards become `SPLIT.jsonl` and a folder of pictures, a shard at a time.

A shard is done when its part is there, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flagscale_vla.config.export_conversations import ExportConversationsRun, RowForm
from flagscale_vla.data.convert.spelling import spell_row
from flagscale_vla.data.convert.turns import RowError
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.shards import SPLITS, list_shards
from flagscale_vla.data.tar import BrokenTarError, group_members, walk_tar
from flagscale_vla.reports.outputs import keep_settings, replace_text, write_summary

logger = logging.getLogger(__name__)

PARTS = "parts"
IMAGES = "images"
REFUSED = "refused.jsonl"
FEW_SAMPLES = 100
"""So many samples count as having been seen at least, before a share of them is taken."""


def run(run: ExportConversationsRun) -> None:
    """Write the rows of all shards, then join them per split.

    Raises:
        ValueError: there are no shards, or more than `max_refused_share` of the samples cannot be written.
    """
    folder, source = Path(run.output), Path(run.shards)
    keep_settings(run, folder, free=("processes", "max_refused_share"))
    shards = [shard for split in SPLITS for shard in list_shards(source, split)]
    if not shards:
        raise ValueError(f"shards={source} holds no shards; name a folder that a convert_* job has written")
    missing = [shard for shard in shards if not part_path(folder, shard).is_file()]
    work = partial(export_shard, folder, run.form)
    with tqdm(total=len(shards), initial=len(shards) - len(missing), unit="shard", desc="export") as bar:
        for _ in map_jobs(work, missing, min(run.processes, max(len(missing), 1))):
            bar.update()
    parts = [json.loads(part_path(folder, shard).read_text(encoding="utf-8")) for shard in shards]
    check_refused(run, parts)
    join(folder, shards, parts)


def part_path(folder: Path, shard: Path) -> Path:
    """Where the rows of a shard lie until all are there."""
    return folder / PARTS / f"{shard.stem}.json"


def export_shard(folder: Path, form: RowForm, shard: Path) -> None:
    """Write a shard's pictures, then its rows and refusals in one step."""
    shutil.rmtree(folder / IMAGES / shard.stem, ignore_errors=True)
    (folder / IMAGES / shard.stem).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    for outcome in export_samples(folder, form, shard):
        (refused if "reason" in outcome else rows).append(outcome)
    path = part_path(folder, shard)
    path.parent.mkdir(exist_ok=True)
    replace_text(path, json.dumps({"rows": rows, "refused": refused}, ensure_ascii=False))


def export_samples(folder: Path, form: RowForm, shard: Path) -> Iterator[dict[str, Any]]:
    """The row of each sample, or its place and the reason why it has none."""
    content = shard.read_bytes()
    try:
        for group in group_members(walk_tar(content, whole=True)):
            try:
                sample = parse_sample(shard.name, group, content)
                meta = parse_meta(shard.name, group, content)
                spelled = spell_row(sample, meta, form, f"{IMAGES}/{shard.stem}")
            except (BadSampleError, RowError) as error:
                yield {"place": f"{shard.name}/{group.key}", "reason": str(error)}
                continue
            for path, encoded in spelled.files.items():
                (folder / path).write_bytes(encoded)
            yield spelled.row
    except BrokenTarError as error:
        yield {"place": f"{shard.name}/{error.member}", "reason": str(error)}


def check_refused(run: ExportConversationsRun, parts: Sequence[dict[str, Any]]) -> None:
    """Stop where too much cannot be written.

    Raises:
        ValueError: naming the first such sample.
    """
    refused = [refusal for part in parts for refusal in part["refused"]]
    total = len(refused) + sum(len(part["rows"]) for part in parts)
    if len(refused) > run.max_refused_share * max(total, FEW_SAMPLES):
        raise ValueError(
            f"{len(refused)} of {total} samples cannot be written, more than max_refused_share="
            f"{run.max_refused_share} lets pass. The first: {refused[0]['place']}: {refused[0]['reason']}"
        )


def join(folder: Path, shards: Sequence[Path], parts: Sequence[dict[str, Any]]) -> None:
    """Write `train.jsonl`, `heldout.jsonl`, `refused.jsonl` and `summary.json`."""
    figures: dict[str, object] = {"shards": len(shards)}
    for split in SPLITS:
        rows = [row for shard, part in zip(shards, parts, strict=True) if split in shard.stem for row in part["rows"]]
        figures["rows" if split == "train" else f"{split}_rows"] = len(rows)
        if rows:
            write_lines(folder / f"{split}.jsonl", rows)
    refused = [refusal for part in parts for refusal in part["refused"]]
    write_lines(folder / REFUSED, refused)
    write_summary(folder, figures | {"refused": len(refused)}, device="cpu")
    logger.info("rows: %s: %s", folder.resolve(), figures)


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines, in one step."""
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
