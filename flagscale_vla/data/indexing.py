"""Job `index`: the index of both splits built in parallel, its shards listed and verified, and a page about it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flagscale_vla.config.index_run import IndexRun
from flagscale_vla.data.faults import Fault
from flagscale_vla.data.index import Index, open_index
from flagscale_vla.data.index_report import write_page
from flagscale_vla.data.pool import map_jobs
from flagscale_vla.data.prepare import open_recipe, open_stores
from flagscale_vla.data.remote import LIST, LIST_VERSION, read_list
from flagscale_vla.data.scan import digest_shard
from flagscale_vla.data.shards import SPLITS
from flagscale_vla.data.sources import label
from flagscale_vla.data.store import LocalStore, Store
from flagscale_vla.reports.outputs import CONFIG, replace_text, settings_yaml, write_summary

logger = logging.getLogger(__name__)

FAULTS = "faults.jsonl"
WHOLE = "(whole file)"
"""Stands for a member where all of a shard is meant."""
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
    begin = time.perf_counter()
    indices = index_sources(run)
    seconds = time.perf_counter() - begin
    changed = verify(indices, run.processes) if run.verify else ()
    faults = [label_fault(name, fault) for name, index in indices.items() for fault in index.faults]
    write_faults(output / FAULTS, [*changed, *faults])
    figures = figures_of(indices) | {"seconds": round(seconds, 3), "verified": run.verify, "changed": len(changed)}
    summary = write_summary(output, figures, "cpu")
    page = write_page(output, indices, [*changed, *faults], figures)
    for name, path in (("faults", output / FAULTS), ("summary", summary), ("report", page)):
        logger.info("%s: %s", name, path.resolve())
    if changed:
        shown = "; ".join(f"{fault.shard} {fault.reason}" for fault in changed[:SHOWN])
        raise ValueError(f"{len(changed)} shards are not as they were indexed: {shown}. {page} lists them")
    publish(indices)


def index_sources(run: IndexRun) -> dict[str, Index]:
    """The index of each split that has shards, as `SPLIT`, or `SOURCE/SPLIT` where sources have names."""
    stores = open_stores(run.data)
    recipe = open_recipe(stores, run.data, run.action, width=run.width, vocab=run.vocab)
    return {
        label(name, split): open_index(store, split, recipe, processes=run.processes)
        for name, store in stores.items()
        for split in SPLITS
        if split == "train" or store.list_shards(split)
    }


def label_fault(name: str, fault: Fault) -> Fault:
    """A fault of the index `name`, its shard called as in training."""
    return replace(fault, shard=label(name.rpartition("/")[0], fault.shard))


def verify(indices: Mapping[str, Index], processes: int) -> tuple[Fault, ...]:
    """Read every shard anew; those whose bytes are not the ones that were indexed, or that `shards.json` names."""
    jobs = [(index.store, shard) for index in indices.values() for shard in index.shards]
    done = map_jobs(_digest, jobs, max(1, min(processes, len(jobs))))
    found = dict(tqdm(done, desc="verifying", total=len(jobs), unit="tar"))
    changed = []
    for name, index in indices.items():
        published = published_digests(index.store)
        for shard, digest in zip(index.shards, index.digests, strict=True):
            read = found[index.store.url, shard]
            for origin, expected in (("its index", digest), (LIST, published.get(shard, digest))):
                if read != expected:
                    reason = f"has digest {read}, {origin} has {expected}"
                    changed.append(label_fault(name, Fault(shard=shard, member=WHOLE, reason=reason)))
                    break
    return tuple(changed)


def _digest(job: tuple[Store, str]) -> tuple[tuple[str, str], str]:
    store, shard = job
    return (store.url, shard), digest_shard(store, shard)


def published_digests(store: Store) -> dict[str, str]:
    """By shard, what `shards.json` beside the shards says; nothing where there is none."""
    content = store.find(LIST)
    if content is None:
        return {}
    entries = read_list(content, f"{store.url}/{LIST}").values()
    return {entry["name"]: entry["digest"] for split in entries for entry in split if "digest" in entry}


def publish(indices: Mapping[str, Index]) -> None:
    """Write `shards.json` beside the shards of each folder, for those who read them over http, or check a copy."""
    folders: dict[Path, dict[str, Any]] = {}
    for name, index in indices.items():
        if isinstance(index.store, LocalStore):
            folders.setdefault(index.store.path, {})[name.rpartition("/")[2]] = _entries(index.store, index)
    for folder, splits in folders.items():
        try:
            replace_text(folder / LIST, json.dumps({"version": LIST_VERSION, "splits": splits}, indent=1) + "\n")
        except OSError as error:
            logger.warning("%s/%s cannot be written (%s); over http it names the shards", folder, LIST, error)


def _entries(store: Store, index: Index) -> list[dict[str, Any]]:
    counts = [0] * len(index.shards)
    for shard in index.shard.tolist():
        counts[shard] += 1
    return [
        {"name": shard, "bytes": store.size(shard), "digest": digest, "samples": count}
        for shard, digest, count in zip(index.shards, index.digests, counts, strict=True)
    ]


def figures_of(indices: Mapping[str, Index]) -> dict[str, Any]:
    """Counts of each index, and of each robot in it."""
    figures: dict[str, Any] = {}
    for name, index in indices.items():
        robots = {
            robot or "(none)": sum(found == robot for found in index.robots) for robot in sorted(set(index.robots))
        }
        figures[name] = {
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
