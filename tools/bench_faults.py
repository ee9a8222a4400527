"""Throughput on shards of which 1 % of the samples cannot be used, over that on clean ones: ours, and webdataset's.

    python tools/bench_faults.py [--samples 700] [--share 0.01] [--rounds 9]

Eight kinds of damage are done by `damage_shards.py` to robots' frames with two JPEGs of 256 x 256, read at 224 x 224.
Every side gives every sample once a round, in one process of one thread, clean and damaged in turns forwards and
backwards, after a first round that is not counted; a ratio is taken within its round. Ours is the loader of a training
run behind its index; its list of quarantined samples is compared with what was done. Beside it stands plain webdataset
with the two handlers that go on after an error: `warn_and_continue` sleeps half a second at each, `ignore_and_continue`
says nothing. For both, what is delivered although it cannot be used is counted. By wall time, which sleeping costs, and
by this process's CPU time, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from bench_samples import INSTRUCTIONS, ROBOT, open_feed
from damage_shards import Damage, damage_folder
from hydra import compose, initialize_config_dir
from PIL import Image as Picture

from flagscale_vla.config.model import PATCH_PIXELS
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.data.faults import Quarantine, load_faults
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.images import resize
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.shards import ShardWriter, list_shards
from flagscale_vla.records import Action, Image, Segment, State, Text
from flagscale_vla.robots.embodiments import save_embodiments

CONF = Path(__file__).resolve().parents[1] / "conf"
GOAL = 0.95
HORIZON = 16
ROW = 4096
SIDE = 256
GRID = (16, 16)
"""Patches of a picture that was resized to 224 x 224."""
PICTURES = 64
"""Different ones."""
SHARD_BYTES = 4 << 20
HANDLERS = {
    "webdataset, warn": webdataset.warn_and_continue,
    "webdataset, ignore": webdataset.ignore_and_continue,
}

Pass = Callable[[], list[str]]
"""Gives every sample once; the keys of those that it gave, without shards."""


def write(folder: Path, count: int) -> None:
    """Frames of a robot in shards."""
    generator = np.random.default_rng(0)
    pictures = [photograph(generator) for _ in range(PICTURES)]
    with ShardWriter(folder, "train", SHARD_BYTES) as writer:
        for number in range(count):
            values = generator.normal(size=(HORIZON, len(ROBOT.action))).astype(np.float32)
            chosen = generator.integers(PICTURES, size=len(ROBOT.cameras)).tolist()
            segments: list[Segment] = [
                *(Image(name=name, encoded=pictures[at]) for name, at in zip(ROBOT.cameras, chosen, strict=True)),
                State(values=values[0], robot=ROBOT.name),
                Text(text=str(generator.choice(INSTRUCTIONS)), supervised=False),
                Action(values=values, valid=np.ones(HORIZON, np.bool_), robot=ROBOT.name),
            ]
            writer.write(f"frame-{number:06d}", segments, {"source": "bench_faults"})
    save_embodiments(folder, [ROBOT])


def photograph(generator: np.random.Generator) -> bytes:
    """A JPEG of smooth shapes and some grain."""
    coarse = Picture.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Picture.Resampling.BICUBIC), np.float32)
    grain = generator.normal(0, 6, smooth.shape)
    buffer = io.BytesIO()
    Picture.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def with_pillow(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of webdataset's with its pictures resized as ours are."""
    for name in ROBOT.cameras:
        sample[f"{name}.jpg"] = torch.from_numpy(resize(np.asarray(sample[f"{name}.jpg"]), GRID).copy())
    return sample


def compose_run() -> TrainRun:
    """Settings of the tiny run, pictures as above."""
    register_schemas()
    pixels = GRID[0] * GRID[1] * PATCH_PIXELS**2
    overrides = [f"data.image.max_pixels={pixels}", f"data.pack_length={ROW}", f"action.horizon={HORIZON}"]
    with initialize_config_dir(str(CONF), version_base=None):
        run = settings_of(compose("train_tiny_action", overrides))
    assert isinstance(run, TrainRun)
    return run


def ours(feed: Feed, list_at: Path) -> Pass:
    """Our loader through all samples of the index."""

    def give() -> list[str]:
        quarantine = Quarantine(list_at, 0.05, 0.2)
        keys: list[str] = []
        with Loader(
            feed, dp_rank=0, dp_size=1, position=Position(), workers=0, pin=False, quarantine=quarantine
        ) as loader:
            known = loader.quarantined
            while loader.samples + loader.quarantined - known < sum(feed.sound.values()):
                keys += [key.rpartition("/")[2] for batch in loader.take(1) for key in batch.keys]
        return keys

    return give


def plain_webdataset(folder: Path, handler: Callable[[Exception], bool]) -> Pass:
    """webdataset through all shards."""
    shards = [str(path) for path in list_shards(folder, "train")]

    def give() -> list[str]:
        dataset = webdataset.WebDataset(shards, shardshuffle=False, handler=handler, empty_check=False)
        samples = dataset.decode("pil", handler=handler).map(with_pillow, handler=handler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [sample["__key__"] for sample in samples]

    return give


@dataclass(slots=True)
class Timed:
    """What a side did in every round."""

    wall: list[float] = field(default_factory=list)
    """samples per second"""
    cpu: list[float] = field(default_factory=list)
    """samples per second of CPU time"""
    given: list[str] = field(default_factory=list)
    """keys of the last round"""


def measure(sides: dict[str, Pass], rounds: int) -> dict[str, Timed]:
    """All sides in turns."""
    timed = {name: Timed() for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            own = timed[name]
            wall, cpu = time.perf_counter(), time.process_time()
            own.given = sides[name]()
            if number:
                own.wall.append(len(own.given) / (time.perf_counter() - wall))
                own.cpu.append(len(own.given) / (time.process_time() - cpu))
    return timed


def is_exact(found: Path, done: list[Damage]) -> bool:
    """Whether a quarantine list has every damage, with its words, and nothing else."""
    faults = {(fault.shard, fault.member): fault.reason for fault in load_faults(found)}
    wanted = {(damage.shard, damage.member): damage.reason for damage in done}
    return faults.keys() == wanted.keys() and all(words in faults[place] for place, words in wanted.items())


def bad_keys(done: list[Damage]) -> set[str]:
    """Keys of damaged samples that a reader may give all the same."""
    return {damage.member.partition(".")[0] for damage in done if damage.kind != "empty shard"}


def tell(name: str, clean: Timed, damaged: Timed, delivered: int) -> dict[str, float]:
    """Print a table's line; its figures by name."""
    figures: dict[str, float] = {f"{name}: delivered": delivered}
    cells = [name, *(f"{statistics.median(rates):.1f}" for rates in (clean.wall, damaged.wall))]
    for clock, good, bad in (("wall", clean.wall, damaged.wall), ("CPU", clean.cpu, damaged.cpu)):
        low, middle, high = statistics.quantiles([b / a for a, b in zip(good, bad, strict=True)], n=4)
        cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        figures |= {f"{name}: {clock}": middle, f"{name}: {clock}, lower quartile": low}
    print("| " + " | ".join([*cells, str(delivered)]) + " |")
    return figures


def main() -> None:
    """Measure; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=700)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flagscale_vla").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        clean, damaged = Path(name) / "clean", Path(name) / "damaged"
        write(clean, options.samples)
        done = damage_folder(clean, damaged, options.share)
        sides = {}
        for kind, folder in (("clean", clean), ("damaged", damaged)):
            feed = open_feed(compose_run(), folder)
            sides[f"ours, {kind}"] = ours(feed, Path(name) / f"{kind}.jsonl")
            for handler_name, handler in HANDLERS.items():
                sides[f"{handler_name}, {kind}"] = plain_webdataset(folder, handler)
        timed = measure(sides, options.rounds)
        exact = is_exact(Path(name) / "damaged.jsonl", done)
    print(f"{options.samples} samples, {len(done)} faults; our list of them is {'exact' if exact else 'NOT exact'}")
    print("| side | clean, samples/s | damaged | damaged by clean, wall | CPU | bad ones delivered |")
    print("|---|---|---|---|---|---|")
    figures: dict[str, object] = {"exact": exact, "goal": GOAL}
    for side in ("ours", *HANDLERS):
        delivered = len(bad_keys(done) & set(timed[f"{side}, damaged"].given))
        figures |= tell(side, timed[f"{side}, clean"], timed[f"{side}, damaged"], delivered)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
