"""Samples of our loader in a second on JPEGs of 640 x 480, beside decoding alone and other loaders.

    python tools/bench_loader.py [--workers 0 1 2] [--decoder turbo] [--by cpu] [--lerobot-python PYTHON]

A sample is a robot's frame: two cameras, a state, an instruction and a chunk of 16 actions, in plain tars on this disk,
which the page cache holds. Pictures go to 252 x 168, Qwen's smart resize for an area of 224 x 224. Against us stand

- decoding: our own back end alone, from bytes in memory to pixels on their grid, in as many processes;
- kept: the same, where the pixels of a row are held until it is whole, as every loader must, and then dropped;
- webdataset: the same tars, Pillow's decoding and resizing to the same pixels, arrays and JSON, workers as ours;
- LeRobot (with --lerobot-python, an interpreter that has it): its own dataset of the same frames as AV1 films, written
  by itself, read by torch's loader as its trainer does, chunks of actions by `delta_timestamps`.

Every side has one thread a process, and all processes are made anew `--starts` times: one that lies better in memory
decodes up to a tenth faster for as long as it lives. A round lets each side give `--samples` samples, in turns forwards
and backwards, after a first round that is not counted; a ratio is taken within its round. Counted is CPU time, of the
process that is given samples and of all that work for it, until what was read ahead is made up for: a machine that does
other things tells nothing by the clock. On one that does not, `--by clock` counts seconds, once what was read ahead is
used up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from bench_images import photograph
from bench_samples import INSTRUCTIONS, ROBOT, open_feed
from cpu_time import cpu_seconds, descendants, settle
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader

from flagscale_vla.config.image import Decoder, PixelLimits
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.data.decoders import load
from flagscale_vla.data.faults import Quarantine
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.images import Pixels, resize
from flagscale_vla.data.loader import Loader
from flagscale_vla.data.plan import Position
from flagscale_vla.data.shards import ShardWriter, list_shards
from flagscale_vla.data.workers import keep_memory
from flagscale_vla.records import Action, Image, Segment, State, Text
from flagscale_vla.robots.embodiments import save_embodiments

CONF = Path(__file__).resolve().parents[1] / "conf"
LIMITS = PixelLimits(28 * 28, 224 * 224)
GRID = (12, 18)
"""Patches of a picture of 640 x 480 within those limits."""
HORIZON = 16
ROW = 4096
ROW_PICTURES = 48
"""Pictures of a row, nearly."""
SHARD_BYTES = 16 << 20
GOALS = {"decoding": 0.95, "webdataset": 1.3, "lerobot": 3.0}

READ_BEFORE = 100
"""Samples that one worker of any side may have ready."""

Give = Callable[[int], int]
"""Gives at least so many samples, and says how many: rows of ours are whole."""


@dataclass(frozen=True)
class Side:
    """One loader, opened."""

    give: Give
    pids: set[int]
    """of the processes that work for it"""


Rate = Callable[[Side, int], float]


def opened(make: Callable[[], Give]) -> Side:
    """A side whose processes are those that come into being with it."""
    before = descendants()
    give = make()
    give(1)
    return Side(give, descendants() - before)


def frames(count: int) -> Iterator[tuple[str, list[Segment]]]:
    """Samples of a robot, each with its key."""
    generator = np.random.default_rng(0)
    for number in range(count):
        values = generator.normal(size=(HORIZON, len(ROBOT.action))).astype(np.float32)
        yield (
            f"frame-{number:06d}",
            [
                *(Image(name=name, encoded=photograph(2 * number + place)) for place, name in enumerate(ROBOT.cameras)),
                State(values=values[0], robot=ROBOT.name),
                Text(text=str(generator.choice(INSTRUCTIONS)), supervised=False),
                Action(values=values, valid=np.ones(HORIZON, np.bool_), robot=ROBOT.name),
            ],
        )


def write(folder: Path, count: int) -> list[bytes]:
    """Make the shards; all pictures, encoded."""
    pictures: list[bytes] = []
    with ShardWriter(folder, "train", SHARD_BYTES) as writer:
        for key, segments in frames(count):
            writer.write(key, segments, {"source": "bench_loader"})
            pictures += [segment.encoded for segment in segments if isinstance(segment, Image)]
    save_embodiments(folder, [ROBOT])
    return pictures


def compose_run(folder: Path, decoder: Decoder) -> TrainRun:
    """Settings of the tiny run on these shards, pictures as above and unchanged."""
    register_schemas()
    overrides = [
        f"data.shards={folder}",
        f"data.image.min_pixels={LIMITS.min_pixels}",
        f"data.image.max_pixels={LIMITS.max_pixels}",
        f"data.image.decoder={decoder.value}",
        f"data.pack_length={ROW}",
        f"action.horizon={HORIZON}",
    ]
    with initialize_config_dir(str(CONF), version_base=None):
        run = settings_of(compose("train_tiny_action", overrides))
    assert isinstance(run, TrainRun)
    return run


def ours(feed: Feed, workers: int, folder: Path) -> Give:
    """Our loader, rows of a training run."""
    quarantine = Quarantine(folder / "quarantine.jsonl", 0.0, 0.0)
    loader = Loader(feed, dp_rank=0, dp_size=1, position=Position(), workers=workers, pin=False, quarantine=quarantine)

    def give(samples: int) -> int:
        before = loader.samples
        while loader.samples < before + samples:
            loader.take(1)
        return loader.samples - before

    return give


class Decoding:
    """Our back end alone, on pictures that its process holds."""

    here: Decoding

    def __init__(self, pictures: list[bytes], decoder: Decoder) -> None:
        torch.set_num_threads(1)
        keep_memory()
        self.endless, self.decoder = cycle(pictures), decoder

    def decode(self, samples: int, kept: int) -> None:
        """As many pictures as so many samples have; the pixels of the last `kept` are held."""
        held: deque[Pixels] = deque(maxlen=kept)
        for encoded in islice(self.endless, samples * len(ROBOT.cameras)):
            if len(held) == kept:
                held.clear()
            held.append(load("picture", encoded, LIMITS, self.decoder))


def begin_decoding(pictures: list[bytes], decoder: Decoder) -> None:
    """What each process begins with: it is given its pictures once."""
    Decoding.here = Decoding(pictures, decoder)


def decode_here(samples: int, kept: int) -> None:
    """What each process is asked for."""
    Decoding.here.decode(samples, kept)


def decoding(pool: Pool | None, workers: int, kept: int) -> Give:
    """Our back end alone, in as many processes as the loader has workers."""

    def give(samples: int) -> int:
        if pool is None:
            decode_here(samples, kept)
            return samples
        pool.starmap(decode_here, [(samples // workers, kept)] * workers, chunksize=1)
        return samples // workers * workers

    return give


def with_pillow(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of webdataset's with its pictures decoded and resized as a training pipeline does."""
    for name in ROBOT.cameras:
        pixels = np.asarray(sample[f"{name}.jpg"])
        sample[f"{name}.jpg"] = torch.from_numpy(resize(pixels, GRID).copy())
    return sample


def itself(sample: dict[str, Any]) -> dict[str, Any]:
    """Batches of one sample, uncollated."""
    return sample


def one_thread(_worker: int) -> None:
    """What each worker begins with."""
    torch.set_num_threads(1)


def plain_webdataset(folder: Path, workers: int) -> Give:
    """webdataset on the same tars."""
    shards = [str(path) for path in list_shards(folder, "train")]
    dataset = webdataset.WebDataset(shards, shardshuffle=False, resampled=True).decode("pil").map(with_pillow)
    given = iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            collate_fn=itself,
            worker_init_fn=one_thread,
            **({"prefetch_factor": 32, "multiprocessing_context": "forkserver"} if workers else {}),
        )
    )

    def give(samples: int) -> int:
        return sum(1 for _ in islice(given, samples))

    return give


class LeRobot:
    """LeRobot's side in a process of its own, which gives samples when it is told to."""

    def __init__(self, python: str, folder: Path, shards: Path, workers: int, stand_in: str) -> None:
        script = Path(__file__).with_name("bench_loader_theirs.py")
        command = [python, str(script), str(folder), str(shards), str(workers), stand_in]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def give(self, samples: int) -> int:
        """Let it give samples."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{samples}\n")
        self.process.stdin.flush()
        self.answer()
        return samples

    def answer(self) -> None:
        """Wait until it is done.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "done":
            raise RuntimeError("LeRobot's side ended; its own words are above")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(sides: dict[str, Side], samples: int, rounds: int, rate: Rate) -> dict[str, list[float]]:
    """Samples per second of every side in every round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            found = rate(sides[name], samples)
            if number:
                rates[name].append(found)
    return rates


def rate_by_cpu(side: Side, samples: int) -> float:
    """Samples per second of CPU time, over so many."""
    settle(side.pids)
    start = time.process_time() + cpu_seconds(side.pids)
    given = side.give(samples)
    own = time.process_time()
    settle(side.pids)
    return given / (own + cpu_seconds(side.pids) - start)


def rate_by_clock(side: Side, samples: int) -> float:
    """Samples per second, over so many behind those that were read ahead."""
    settle(side.pids)
    if side.pids:
        side.give(READ_BEFORE * len(side.pids))
    start = time.perf_counter()
    return side.give(samples) / (time.perf_counter() - start)


RATES: dict[str, Rate] = {"cpu": rate_by_cpu, "clock": rate_by_clock}


def tell(workers: int, rates: dict[str, list[float]]) -> dict[str, float]:
    """Print a table's lines; the figures by name."""
    figures: dict[str, float] = {}
    for name, own in rates.items():
        ratios = [our / other for our, other in zip(rates["ours"], own, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        goal = GOALS.get(name, "")
        print(
            f"| {workers} | {name} | {statistics.median(own):.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | {goal} |"
        )
        figures |= {f"rate_{name}_{workers}": statistics.median(own), f"ratio_{name}_{workers}": middle}
        figures[f"low_{name}_{workers}"] = low
    return figures


def pool_pids(pool: Pool | None) -> set[int]:
    """Processes of a pool."""
    return {pool.apply(os.getpid) for _ in range(50)} if pool else set()


def bench(
    options: argparse.Namespace, workers: int, feed: Feed, pictures: list[bytes], folder: Path
) -> dict[str, list[float]]:
    """Samples per second of all sides with so many workers, in processes of this start."""
    held = (pictures, feed.recipe.image.decoder)
    begin_decoding(*held)
    pool = get_context("forkserver").Pool(workers, begin_decoding, held) if workers else None
    sides = {
        "ours": opened(lambda: ours(feed, workers, folder)),
        "decoding": Side(decoding(pool, workers, kept=0), pool_pids(pool)),
        "kept": Side(decoding(pool, workers, kept=ROW_PICTURES), pool_pids(pool)),
        "webdataset": opened(lambda: plain_webdataset(folder / "shards", workers)),
    }
    theirs = None
    if options.lerobot_python:
        theirs = LeRobot(options.lerobot_python, folder / "lerobot", folder / "shards", workers, options.stand_in)
        theirs.give(1)
        sides["lerobot"] = Side(theirs.give, {theirs.process.pid} | descendants(theirs.process.pid))
    rates = measure(sides, options.samples, options.rounds, RATES[options.by])
    if pool:
        pool.terminate()
    if theirs:
        theirs.close()
    return rates


def main() -> None:
    """Measure; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--decoder", choices=[decoder.value for decoder in Decoder], default="turbo")
    parser.add_argument("--by", choices=RATES, default="cpu", help="what a second is")
    parser.add_argument("--frames", type=int, default=120, help="different samples")
    parser.add_argument("--samples", type=int, default=40, help="samples of a round")
    parser.add_argument("--rounds", type=int, default=3, help="of each start")
    parser.add_argument("--starts", type=int, default=3, help="how often all processes are made anew")
    parser.add_argument("--lerobot-python", default="", help="an interpreter that has LeRobot")
    parser.add_argument("--stand-in", default="", help="a module that LeRobot's side imports first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write(folder / "shards", options.frames)
        feed = open_feed(compose_run(folder / "shards", Decoder(options.decoder)), folder / "shards")
        print(f"{options.frames} samples, JPEGs of {statistics.mean(map(len, pictures)):,.0f} bytes")
        print(f"| workers | side | samples a second by {options.by} | ours by it | quartiles | goal |")
        print("|---|---|---|---|---|---|")
        figures: dict[str, float] = {}
        for workers in options.workers:
            starts = [bench(options, workers, feed, pictures, folder) for _ in range(options.starts)]
            figures |= tell(workers, {name: [rate for start in starts for rate in start[name]] for name in starts[0]})
        sys.stdout.flush()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
