"""What becomes of the order of samples when the number of ranks changes in mid-run: ours, energon's and MosaicML's.

    python tools/compare_order.py [--python PYTHON]

An epoch is read in four stretches, on 2, 4, 3 and 1 ranks; each goes on from the state that the one before left. It is
compared with an epoch that nothing interrupts. Ours reads packed rows, and changes the number of workers too; theirs
reads plain samples, 12 in a step. PYTHON is an interpreter with `megatron-energon` or `mosaicml-streaming`, or both;
what it lacks is told and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench_resume import write_shards
from bench_samples import made_up
from hydra import compose, initialize_config_dir

from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.data.faults import Quarantine
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.index import open_index
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.sources import Source
from flagscale_vla.data.store import LocalStore

CONF = Path(__file__).parents[1] / "conf"
THEIRS = Path(__file__).with_name("compare_order_theirs.py")
SAMPLES = 480
STRETCHES = ((2, 96), (4, 96), (3, 96), (1, 192))
"""(ranks, samples of all ranks) for the others."""
BATCH = 12
"""Samples of their steps."""
OURS = ((2, 6, 1), (4, 3, 0), (3, 4, 0), (1, 12, 3))
"""(ranks, rows of each, workers)"""


def open_feed(folder: Path) -> Feed:
    """Small shards, in rows of the tiny run."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        run = settings_of(compose("train_tiny_action", ["platform.device=cpu"]))
    assert isinstance(run, TrainRun)
    recipe = made_up(run)
    write_shards(folder, SAMPLES)
    source = Source(name="", index=open_index(LocalStore(folder), "train", recipe))
    return Feed(sources=(source,), recipe=recipe, order=run.data, pack_length=1024, seed=run.seed, augment=True)


def read(feed: Feed, folder: Path, position: Position, ranks: int, rows: int, workers: int) -> list[tuple[str, ...]]:
    """Keys of the rows that all ranks take, in the order of rows."""
    taken = []
    for rank in range(ranks):
        quarantine = Quarantine(folder / "quarantine.jsonl", 0.0, 0.0)
        with Loader(
            feed, dp_rank=rank, dp_size=ranks, position=position, workers=workers, pin=False, quarantine=quarantine
        ) as loader:
            taken.append([batch.keys for batch in loader.take(rows)])
    return [keys for step in zip(*taken, strict=True) for keys in step]


def ours(folder: Path) -> None:
    """Read in stretches and at once."""
    feed = open_feed(folder)
    position, changed = Position(), []
    for ranks, rows, workers in OURS:
        changed += read(feed, folder, position, ranks, rows, workers)
        position = feed.plan(position).position(position.packs + ranks * rows)
    unbroken = read(feed, folder, Position(), 1, position.packs, 0)
    tell("flagscale_vla, rows of whole samples", unbroken, changed)


def tell(
    name: str, unbroken: list[object] | list[tuple[str, ...]], changed: list[object] | list[tuple[str, ...]]
) -> None:
    """One line: whether the order is the same, and what was lost or repeated."""
    before, after = Counter(unbroken), Counter(changed)
    lost, repeated = sum((before - after).values()), sum((after - before).values())
    order = "the same order" if unbroken == changed else "another order"
    print(f"{name}: {order}; of {len(unbroken)}, {lost} lost and {repeated} repeated")


def steps_of(samples: list[int]) -> list[object]:
    """What each step holds, sorted."""
    return [tuple(sorted(samples[start : start + BATCH])) for start in range(0, len(samples), BATCH)]


def theirs(python: str, which: str, folder: Path) -> dict[str, object] | None:
    """What the other side found; None where it cannot run, which is told."""
    command = [python, str(THEIRS), which, str(folder), str(SAMPLES), json.dumps(STRETCHES)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        print(f"{which}: cannot run: {done.stderr.strip().splitlines()[-1]}")
        return None
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the others")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ours(Path(scratch) / "ours")
        if found := theirs(asked.python, "energon", Path(scratch) / "energon"):
            label = f"megatron-energon {found.pop('version')}"
            for name, result in found.items():
                print(f"{label}, {name.replace('_', ' ')}: {result}")
        if found := theirs(asked.python, "streaming", Path(scratch) / "streaming"):
            unbroken, changed = found["unbroken"], found["changed"]
            assert isinstance(unbroken, list)
            assert isinstance(changed, list)
            label = f"mosaicml-streaming {found['version']}, plain samples"
            tell(label, unbroken, changed)
            tell(f"{label}, steps whatever the order in them", steps_of(unbroken), steps_of(changed))


if __name__ == "__main__":
    main()
