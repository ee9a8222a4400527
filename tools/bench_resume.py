"""How long a run waits for its first row when it goes on, by how far it was; beside webdataset, which skips.

    python tools/bench_resume.py [--samples 21000] [--skip 100000] [--rounds 9] [--folder DIR]

Small pictures with text are written into shards and indexed once. A round opens everything anew, in this process: the
kept index, the plan and the loader without workers, until the first row of a position is there. Positions are taken in
turn. webdataset reads the same shards, again and again, and skips samples to get there: decoded ones, as where the loop
itself skips, or ones as they lie in the tar.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset
from bench_samples import made_up
from hydra import compose, initialize_config_dir
from PIL import Image as Picture

from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.data.faults import Quarantine
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.index import open_index
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.shards import ShardWriter
from flagscale_vla.data.sources import Source
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import Image, Text

CONF = Path(__file__).parents[1] / "conf"
POSITIONS = (0, 10**3, 10**4, 10**5, 10**6)
"""Samples read before."""
SIDE = 112
PICTURES = 50
SHARD_BYTES = 16 << 20
MOST_RATIO = 1.5
LEAST_RATIO = 50.0


def write_shards(folder: Path, count: int) -> None:
    """Pictures with a question and an answer of some words."""
    draw = np.random.default_rng(0)
    encoded = [encode(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(PICTURES)]
    words = draw.integers(2, 60, count).tolist()
    with ShardWriter(folder, "train", SHARD_BYTES) as writer:
        for number in range(count):
            answer = "open the door " * words[number]
            texts = (Text(text="what is this?", supervised=False), Text(text=answer, supervised=True))
            picture = Image(name="picture", encoded=encoded[number % PICTURES])
            writer.write(f"sample-{number:07d}", (picture, *texts), {})


def encode(coarse: np.ndarray) -> bytes:
    """A smooth JPEG."""
    buffer = io.BytesIO()
    Picture.fromarray(coarse).resize((SIDE, SIDE), Picture.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def open_feed(run: TrainRun, folder: Path, recipe: Recipe) -> Feed:
    """What a run would read; the index is the kept one."""
    index = open_index(LocalStore(folder), "train", recipe)
    source = Source(name="", index=index)
    return Feed(
        sources=(source,), recipe=recipe, order=run.data, pack_length=run.data.pack_length, seed=run.seed, augment=True
    )


def first_row(run: TrainRun, folder: Path, recipe: Recipe, position: Position) -> tuple[str, ...]:
    """Keys of the first row of a position."""
    with Loader(
        open_feed(run, folder, recipe),
        dp_rank=0,
        dp_size=1,
        position=position,
        workers=0,
        pin=False,
        quarantine=Quarantine(folder / "quarantine.jsonl", 0.0, 0.0),
    ) as loader:
        return loader.take(1)[0].keys


def find_position(feed: Feed, samples: int) -> Position:
    """The first row with so many samples before it."""
    plan, position = feed.plan(Position()), Position()
    per_row = feed.mixture.era / len(plan.era(0))
    while sum(part.samples for part in plan.given(position.packs)) < samples:
        missing = samples - sum(part.samples for part in plan.given(position.packs))
        position = plan.position(position.packs + max(1, int(0.9 * missing / per_row)))
    return position


def theirs(folder: Path, skip: int, *, decode: bool) -> Callable[[], object]:
    """webdataset's first sample after `skip` of them."""
    urls = [str(path) for path in sorted(folder.glob("train-*.tar"))]

    def run() -> object:
        dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).repeat()
        if decode:
            return next(islice(iter(dataset.decode("rgb8")), skip, None))
        return next(islice(iter(dataset), skip, None))

    return run


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=21_000)
    parser.add_argument("--skip", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", default=None, help="where to write; the system's scratch folder by default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        run = settings_of(compose("train_tiny_action", ["platform.device=cpu"]))
    assert isinstance(run, TrainRun)
    recipe = made_up(run)
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        write_shards(Path(scratch), asked.samples)
        report(measure(run, Path(scratch), recipe, asked.rounds), Path(scratch), asked.skip)


def measure(run: TrainRun, folder: Path, recipe: Recipe, rounds: int) -> dict[int, list[float]]:
    """Seconds until the first row, of each round by position."""
    feed = open_feed(run, folder, recipe)
    places = {samples: find_position(feed, samples) for samples in POSITIONS}
    seconds: dict[int, list[float]] = {samples: [] for samples in POSITIONS}
    for number in range(rounds + 1):
        for samples in POSITIONS if number % 2 else POSITIONS[::-1]:
            took = timed(lambda place=places[samples]: first_row(run, folder, recipe, place))  # type: ignore[misc]
            if number:
                seconds[samples].append(took)
    return seconds


def report(seconds: dict[int, list[float]], folder: Path, skip: int) -> None:
    """Print a table, then the figures as one line of JSON."""
    medians = {samples: statistics.median(each) for samples, each in seconds.items()}
    print(f"{'samples before':>14} {'first row, median s':>20} {'of a cold start':>16}")
    for samples, each in medians.items():
        print(f"{samples:14} {each:20.3f} {each / medians[0]:16.2f}")
    decoded, plain = (timed(theirs(folder, skip, decode=decode)) for decode in (True, False))
    ours = medians[10**5]
    print(f"webdataset skips {skip} samples in {decoded:.1f} s decoded, {plain:.1f} s as they lie in the tar")
    figures = {
        "most_of_cold_start": max(medians.values()) / medians[0],
        "goal_of_cold_start": MOST_RATIO,
        "cold_start_seconds": medians[0],
        "times_faster_than_webdataset": decoded / ours,
        "times_faster_than_webdataset_undecoded": plain / ours,
        "goal_times_faster": LEAST_RATIO,
        "skipped": skip,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
