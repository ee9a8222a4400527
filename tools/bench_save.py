"""Compare what a save costs the training loop: ours, in the background or awaited, and torch.distributed.checkpoint's.

    python tools/bench_save.py [--gibibytes 1.0] [--tensors 400] [--passes 5] [--folder DIR]

The same float32 state (weights and two moments of each tensor) is saved by turns, each save into a folder of its own:
the time until the caller may change the state again, and until all of it is on disk. The first pass, which makes room
for copies, is told apart. `torch.distributed.checkpoint` keeps its staging buffers too.
The goal: the loop waits for at most a tenth of the time that a save takes which is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from flagscale_vla.mcore.pieces import Piece, Rectangle
from flagscale_vla.mcore.saver import Saver
from flagscale_vla.mcore.state import MOMENTS

GOAL = 0.1
Save = Callable[[Path], Future[None] | None]


def make_state(num_bytes: float, tensors: int) -> dict[str, Tensor]:
    """Weights and moments, as many bytes in all."""
    length = int(num_bytes / 4 / tensors / (1 + len(MOMENTS)))
    names = [f"layer.{number}.weight" for number in range(tensors)]
    return {name: torch.randn(length) for weight in names for name in (weight, *(f"{k}/{weight}" for k in MOMENTS))}


class Ours:
    """One rank's saver over the state."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.saver = Saver(0)
        self.pieces = [(_whole(name, values), values) for name, values in state.items()]
        # As a run does after its first step.
        self.saver.prepare(self.pieces)

    def awaited(self, folder: Path) -> None:
        """Save, and wait."""
        self.saver.write(folder, self.pieces)

    def background(self, folder: Path) -> Future[None]:
        """Copy, and write in a thread."""
        return self.saver.start(folder, self.pieces)


def _whole(name: str, values: Tensor) -> Piece:
    shape = tuple(values.shape)
    return Piece(name=name, whole=shape, rectangle=Rectangle.whole(shape), start=0, stop=values.numel())


class Theirs:
    """torch.distributed.checkpoint over the state."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        # Plain memory, kept from save to save: pinned and asynchronous copies need a GPU.
        options = StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
        self.stager = DefaultStager(options)

    def awaited(self, folder: Path) -> None:
        """Save, and wait; its files are synced by default."""
        dcp.save(self.state, checkpoint_id=folder)

    def background(self, folder: Path) -> Future[None]:
        """Copy, and write in a thread."""
        answer = dcp.async_save(self.state, checkpoint_id=folder, async_stager=self.stager)
        return answer if isinstance(answer, Future) else answer.upload_completion


def time_save(save: Save, folder: Path) -> tuple[float, float]:
    """Seconds until the caller goes on, and until everything is on disk."""
    os.sync()
    began = time.perf_counter()
    waiting = save(folder)
    went_on = time.perf_counter() - began
    if waiting is not None:
        waiting.result()
    done = time.perf_counter() - began
    shutil.rmtree(folder)
    return went_on, done


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gibibytes", type=float, default=1.0)
    parser.add_argument("--tensors", type=int, default=400)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; the system's scratch folder by default")
    asked = parser.parse_args()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    state = make_state(asked.gibibytes * 2**30, asked.tensors)
    ours, theirs = Ours(state), Theirs(state)
    saves: dict[str, Save] = {
        "ours, awaited": ours.awaited,
        "ours, background": ours.background,
        "torch, awaited": theirs.awaited,
        "torch, background": theirs.background,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in saves}
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        for _ in range(asked.passes + 1):
            for name, save in saves.items():
                times[name].append(time_save(save, Path(scratch) / "save"))
    report(times, sum(values.nbytes for values in state.values()))
    dist.destroy_process_group()


def report(times: dict[str, list[tuple[float, float]]], num_bytes: int) -> None:
    """Print a table, then the figures as one line of JSON."""
    print(f"{num_bytes / 2**30:.2f} GiB of state; {torch.get_num_threads()} threads; medians after the first pass")
    print(f"{'':20} {'loop waits s':>12} {'first s':>9} {'on disk s':>10}")
    waits, done = {}, {}
    for name, seconds in times.items():
        waits[name] = statistics.median(went_on for went_on, _ in seconds[1:])
        done[name] = statistics.median(end for _, end in seconds[1:])
        print(f"{name:20} {waits[name]:12.3f} {seconds[0][0]:9.3f} {done[name]:10.3f}")
    figures = {
        "blocked_share": waits["ours, background"] / waits["ours, awaited"],
        "blocked_share_of_torch_awaited": waits["ours, background"] / waits["torch, awaited"],
        "blocked_share_torch": waits["torch, background"] / waits["torch, awaited"],
        "blocked_seconds": waits["ours, background"],
        "blocked_seconds_torch": waits["torch, background"],
        "goal": GOAL,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
