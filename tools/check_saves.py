"""Kill a job while it saves, and damage what it has saved: no state may be unloadable, no damage unnoticed.

    python tools/check_saves.py [--kills 300] [--flips 1000] [--seed 0] [--mebibytes 16]

Each kill: a process that saves step after step as a run does (`train/saves.py`, two writers) gets SIGKILL at a random
moment; then every checkpoint that counts must load, to the last bit, with the values of its step, and the newest must
be no older than the last one that the process said was saved. Each flip: one bit of one file of a whole checkpoint is
changed, or the file cut off, and loading must name what was hit. Exits with 1 where anything was missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from bench_samples import made_up
from bench_train_step import compose_run

from flagscale_vla.config.checkpoint_files import DamagedError, read_metadata, verify_digests
from flagscale_vla.config.checkpoints import METADATA, WEIGHTS, checkpoint_folder, committed
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.data.feed import Feed
from flagscale_vla.mcore.pieces import Piece, Rectangle
from flagscale_vla.mcore.saver import Saver
from flagscale_vla.mcore.state import Pieces
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.records import Progress
from flagscale_vla.train.saves import Saves

NUM_TENSORS, NUM_WRITERS = 48, 2
LONGEST_LIFE = 1.0
"""Seconds until a process is killed, at most; a save takes a fraction of one."""


class Alone:
    """A topology of one process."""

    is_writer = True

    def barrier(self) -> None:
        """Nobody to wait for."""

    def any(self, flag: bool) -> bool:
        """What this process says."""
        return flag


class Writers:
    """An engine's side of saving: made-up tensors, half of each written by either of two ranks' savers."""

    def __init__(self, num_bytes: int) -> None:
        self.step = 0
        self.length = num_bytes // 4 // NUM_TENSORS
        self.savers = [Saver(rank) for rank in range(NUM_WRITERS)]
        self.waiter = ThreadPoolExecutor(max_workers=1)

    def prepare_save(self) -> None:
        """Room is made by the first save."""

    def start_save(self, folder: Path) -> Future[None]:
        """Begin to write this step's tensors."""
        parts = [saver.start(folder, self._pieces(rank)) for rank, saver in enumerate(self.savers)]
        return self.waiter.submit(lambda: [part.result() for part in parts] and None)

    def _pieces(self, rank: int) -> Pieces:
        half = self.length // NUM_WRITERS
        whole = Rectangle.whole((self.length,))
        start, stop = rank * half, self.length if rank == NUM_WRITERS - 1 else (rank + 1) * half
        return [
            (
                Piece(name=f"layer.{number}.weight", whole=(self.length,), rectangle=whole, start=start, stop=stop),
                values_of(number, self.step, self.length)[start:stop],
            )
            for number in range(NUM_TENSORS)
        ]


def values_of(number: int, step: int, length: int) -> torch.Tensor:
    """What a tensor holds at a step."""
    return torch.arange(length, dtype=torch.float32).add_(number).mul_(1.0 + step)


def made_up_feed(run: TrainRun) -> Feed:
    """A recipe, and no sources, as a checkpoint describes them."""
    return Feed(
        sources=(), recipe=made_up(run), order=run.data, pack_length=run.data.pack_length, seed=0, augment=False
    )


def save_on(run: TrainRun, feed: Feed, num_bytes: int, first: int, told: Connection) -> None:
    """Save step after step from `first`, as a run does, and tell each that is committed."""
    torch.set_num_threads(1)
    engine = Writers(num_bytes)
    saves = Saves(run, Alone(), engine, feed)  # type: ignore[arg-type]
    for step in count(first):
        engine.step = step
        saves.begin(Progress(step=step))
        while saves.is_writing:
            saves.poll()
            time.sleep(0.001)
        told.send(step)


def check_loads(output: Path, num_bytes: int) -> int:
    """Load every checkpoint that counts; returns the newest step, 0 for none.

    Raises:
        DamagedError: one cannot be loaded.
        ValueError: one holds values of another step.
    """
    for folder in committed(output):
        verify_digests(folder, metadata := read_metadata(folder))
        stored = StoredTensors.open(folder / WEIGHTS)
        for number in range(NUM_TENSORS):
            expected = values_of(number, metadata.step, num_bytes // 4 // NUM_TENSORS)
            if not torch.equal(stored.read(f"layer.{number}.weight"), expected):
                raise ValueError(f"{folder}: layer.{number}.weight is not that of step {metadata.step}")
    newest = committed(output)
    return read_metadata(newest[-1]).step if newest else 0


def kill_often(run: TrainRun, kills: int, num_bytes: int, generator: random.Random) -> Counter[str]:
    """Kill saving processes at random moments; what was found after each."""
    output, feed = Path(run.output), made_up_feed(run)
    found: Counter[str] = Counter()
    step = 0
    context = multiprocessing.get_context("fork")
    for _ in range(kills):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_on, args=(run, feed, num_bytes, step + 1, sender))
        process.start()
        sender.close()
        time.sleep(generator.uniform(0.0, LONGEST_LIFE))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        told = last_told(receiver, step)
        found["while a save was unfinished"] += any(not is_whole(path) for path in folders(output))
        try:
            newest = check_loads(output, num_bytes)
        except ValueError as error:
            print(f"UNLOADABLE: {error}")
            found["unloadable"] += 1
            newest = told
        found["lost"] += newest < told
        step = max(newest, told)
        found["kills"] += 1
    found["saves"] = step
    return found


def last_told(receiver: Connection, before: int) -> int:
    """The last step that a process said was committed."""
    try:
        while receiver.poll():
            before = receiver.recv()
    except EOFError:
        pass
    return before


def folders(output: Path) -> list[Path]:
    """Folders of checkpoints, whole or not."""
    return list((output / "checkpoints").glob("step_*"))


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint counts."""
    return (folder / METADATA).is_file()


def damage_often(folder: Path, flips: int, generator: random.Random) -> Counter[str]:
    """Flip a bit of, or cut off, one file after the other; what was found of each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # As a failing disk would: by size; but every kind of file is hit.
    weights = [max(path.stat().st_size, 100_000) for path in files]
    found: Counter[str] = Counter()
    for number in range(flips):
        path = generator.choices(files, weights)[0]
        kind = "truncations" if number % 4 == 0 else "flipped bits"
        undo = truncate(path, generator) if kind == "truncations" else flip(path, generator)
        found[kind] += 1
        message = load_and_tell(folder)
        found["found"] += message is not None
        if path.suffix == ".safetensors":
            found["in a tensor or its header"] += 1
            found["named the tensor"] += "tensor layer." in (message or "")
        else:
            found["in a small file"] += 1
            found["named the file"] += path.name in (message or "")
        undo()
    assert load_and_tell(folder) is None, "what was damaged was not put right"
    return found


def flip(path: Path, generator: random.Random):  # type: ignore[no-untyped-def]
    """Flip one bit; returns how to undo it."""
    place, bit = generator.randrange(path.stat().st_size), 1 << generator.randrange(8)

    def turn() -> None:
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ bit]))

    turn()
    return turn


def truncate(path: Path, generator: random.Random):  # type: ignore[no-untyped-def]
    """Cut the file off at a random length; returns how to undo it."""
    content = path.read_bytes()
    os.truncate(path, generator.randrange(len(content)))
    return lambda: path.write_bytes(content) and None


def load_and_tell(folder: Path) -> str | None:
    """What loading says is wrong; None where it finds nothing."""
    try:
        verify_digests(folder, read_metadata(folder))
        StoredTensors.open(folder / WEIGHTS).verify()
    except DamagedError as error:
        return str(error)
    return None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 300), ("flips", 1000), ("seed", 0), ("mebibytes", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    generator, num_bytes = random.Random(asked.seed), asked.mebibytes * 2**20
    with tempfile.TemporaryDirectory() as scratch:
        run = compose_run([f"output={scratch}", "data.shards=none", "checkpoint.keep=2"])
        killed = kill_often(run, asked.kills, num_bytes, generator)
        shutil.rmtree(Path(scratch) / "checkpoints", ignore_errors=True)
        engine = Writers(2**20)
        whole = Saves(run, Alone(), engine, made_up_feed(run)).last(Progress(step=1))  # type: ignore[arg-type]
        assert whole == checkpoint_folder(Path(scratch), 1)
        damaged = damage_often(whole, asked.flips, generator)
    figures = {"kills": dict(killed), "damage": dict(damaged)}
    print(json.dumps(figures, indent=1))
    missed = killed["unloadable"] + killed["lost"] + asked.flips - damaged["found"]
    # Found, but without saying what was hit.
    unnamed = asked.flips - damaged["named the tensor"] - damaged["named the file"]
    sys.exit(1 if missed or unnamed else 0)


if __name__ == "__main__":
    main()
