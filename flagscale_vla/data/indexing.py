"""Job `index`: the index of both splits built in parallel, its shards listed and verified, and a page about it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flagscale_vla.config.index_run import IndexRun
from flagscale_vla.data.faults import Fault
from flagscale_vla.data.index import Index, open_index
from flagscale_vla.data.index_report import write_page
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.prepare import open_recipe
from flagscale_vla.data.remote import LIST, LIST_VERSION, read_list
from flagscale_vla.data.scan import digest_shard
from flagscale_vla.data.shards import SPLITS
from flagscale_vla.data.store import LocalStore, Store, open_store
from flagscale_vla.reports.outputs import CONFIG, replace_text, settings_yaml, write_summary

logger = logging.getLogger(__name__)

FAULTS = "faults.jsonl"
SHOWN = 5
"""Shards in an error's message."""


def run(run: IndexRun) -> None:
    """Index what is not indexed yet, then tell of all of it.

    Raises:
        ConfigError: settings that do not go with the shards.
        ValueError: there are no shards, or with `verify` the bytes of one are not those that were indexed.
        OSError: a shard cannot be read.
    """
    output = Path(run.output)
    output.mkdir(parents=True, exist_ok=True)
    replace_text(output / CONFIG, settings_yaml(run))
    store = open_store(run.data.shards, run.data.cache)
    begin = time.perf_counter()
    indices = index_splits(run, store)
    seconds = time.perf_counter() - begin
    published = published_digests(store)
    changed = verify(store, indices, published, run.processes) if run.verify else ()
    faults = [fault for index in indices.values() for fault in index.faults]
    write_faults(output / FAULTS, [*faults, *changed])
    figures = figures_of(indices) | {"seconds": round(seconds, 3), "verified": run.verify, "changed": len(changed)}
    summary = write_summary(output, figures, "cpu")
    page = write_page(output, store.url, indices, changed, figures)
    for name, path in (("faults", output / FAULTS), ("summary", summary), ("report", page)):
        logger.info("%s: %s", name, path.resolve())
    if changed:
        shown = "; ".join(f"{fault.shard} {fault.reason}" for fault in changed[:SHOWN])
        raise ValueError(f"{store.url}: {len(changed)} shards are not as they were indexed: {shown}. {page} lists them")
    if isinstance(store, LocalStore):
        publish(store, indices)


def index_splits(run: IndexRun, store: Store) -> dict[str, Index]:
    """The index of each split that has shards; the training split must."""
    recipe = open_recipe({"": store}, run.data, run.action, width=run.width, vocab=run.vocab)
    splits = [split for split in SPLITS if split == "train" or store.list_shards(split)]
    return {split: open_index(store, split, recipe, processes=run.processes) for split in splits}


def verify(
    store: Store, indices: Mapping[str, Index], published: Mapping[str, str], processes: int
) -> tuple[Fault, ...]:
    """Read every shard anew; those whose bytes are not the ones that were indexed, or that `shards.json` names."""
    known = {
        shard: digest for index in indices.values() for shard, digest in zip(index.shards, index.digests, strict=True)
    }
    work = partial(_check_digest, store)
    done = map_jobs(work, known.items(), max(1, min(processes, len(known))))
    found = dict(tqdm(done, desc="verifying", total=len(known), unit="tar"))
    changed = []
    for shard, digest in known.items():
        for origin, expected in (("its index", digest), (LIST, published.get(shard, digest))):
            if found[shard] != expected:
                reason = f"has digest {found[shard]}, {origin} has {expected}"
                changed.append(Fault(shard=shard, member="(whole file)", reason=reason))
                break
    return tuple(changed)


def _check_digest(store: Store, known: tuple[str, str]) -> tuple[str, str]:
    return known[0], digest_shard(store, known[0])


def published_digests(store: Store) -> dict[str, str]:
    """By shard, what `shards.json` beside the shards says; nothing where there is none."""
    content = store.find(LIST)
    if content is None:
        return {}
    entries = read_list(content, f"{store.url}/{LIST}").values()
    return {entry["name"]: entry["digest"] for split in entries for entry in split if "digest" in entry}


def publish(store: LocalStore, indices: Mapping[str, Index]) -> None:
    """Write `shards.json` beside the shards, for those who read them over http, or check a copy."""
    splits = {split: _entries(store, index) for split, index in indices.items()}
    path = store.path / LIST
    try:
        replace_text(path, json.dumps({"version": LIST_VERSION, "splits": splits}, indent=1) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s); it is needed where shards are read over http", path, error)


def _entries(store: Store, index: Index) -> list[dict[str, Any]]:
    counts = [0] * len(index.shards)
    for shard in index.shard.tolist():
        counts[shard] += 1
    return [
        {"name": shard, "bytes": store.size(shard), "digest": digest, "samples": count}
        for shard, digest, count in zip(index.shards, index.digests, counts, strict=True)
    ]


def figures_of(indices: Mapping[str, Index]) -> dict[str, Any]:
    """Counts of each split, and of each robot in it."""
    figures: dict[str, Any] = {}
    for split, index in indices.items():
        robots = {
            robot or "(none)": sum(found == robot for found in index.robots) for robot in sorted(set(index.robots))
        }
        figures[split] = {
            "shards": len(index.shards),
            "samples": len(index),
            "tokens": int(index.lengths.sum()),
            "bytes": int(index.size.sum()),
            "segments": len(index.segments),
            "faults": len(index.faults),
            "robots": robots,
        }
    return figures


def write_faults(path: Path, faults: list[Fault]) -> None:
    """JSON lines of every fault, as a training's quarantine has them."""
    replace_text(path, "".join(json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults))
