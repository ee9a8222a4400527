"""The other side of `compare_order.py`, run by an interpreter that has it; nothing of ours is imported.

    python tools/compare_order_theirs.py energon FOLDER SAMPLES STRETCHES
    python tools/compare_order_theirs.py streaming FOLDER SAMPLES STRETCHES

STRETCHES is JSON: [[ranks, samples of all ranks], ...]. The last line printed is JSON: the ids of samples in the order
in which steps give them, without a stop and with a change of ranks at each stretch, or what was refused.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 12
"""Samples of a step, over all ranks."""
SHARD = 20
"""Samples of a shard."""
Stretches = list[tuple[int, int]]


def write_tars(folder: Path, samples: int) -> None:
    """Shards of texts, and energon's description of them."""
    energon = importlib.import_module("megatron.energon.flavors.webdataset.prepare")
    folder.mkdir(parents=True)
    names = [f"shard_{number:03d}.tar" for number in range(samples // SHARD)]
    for number, name in enumerate(names):
        with tarfile.open(folder / name, "w") as tar:
            for sample in range(number * SHARD, (number + 1) * SHARD):
                info = tarfile.TarInfo(f"{sample:06d}.txt")
                info.size = 6
                tar.addfile(info, io.BytesIO(f"{sample:06d}".encode()))
    prepare = energon.WebdatasetPreparator.prepare_dataset
    prepare(folder, names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1)
    description = "__module__: megatron.energon\n__class__: TextWebdataset\nfield_map:\n  text: txt\n"
    (folder / ".nv-meta" / "dataset.yaml").write_text(description)


def open_energon(folder: Path, rank: int, ranks: int, workers: int = 1) -> Any:
    """A loader of one rank."""
    energon = importlib.import_module("megatron.energon")
    place = energon.WorkerConfig(rank=rank, world_size=ranks, num_workers=workers)
    dataset = energon.get_train_dataset(
        folder, worker_config=place, batch_size=None, shuffle_buffer_size=None, max_samples_per_sequence=None
    )
    return energon.get_savable_loader(dataset)


def take_energon(loader: Any, count: int) -> list[int]:
    """The next samples of one rank."""
    return [int(sample.text) for sample in islice(iter(loader), count)]


def energon(folder: Path, samples: int, stretches: Stretches) -> dict[str, object]:
    """Save on the first stretch's ranks, then restore on as many, on others, and with another number of workers."""
    write_tars(folder, samples)
    ranks, count = stretches[0]
    share = count // ranks
    loaders = [open_energon(folder, rank, ranks) for rank in range(ranks)]
    first = [take_energon(loader, share) for loader in loaders]
    state = [loader.save_state_rank() for loader in loaders]
    whole = [open_energon(folder, rank, ranks) for rank in range(ranks)]
    unbroken = [take_energon(loader, 2 * share) for loader in whole]
    found: dict[str, object] = {"version": version("megatron-energon")}
    again = [open_energon(folder, rank, ranks) for rank in range(ranks)]
    for loader in again:
        loader.restore_state_global(state)
    second = [take_energon(loader, share) for loader in again]
    same = [one + other for one, other in zip(first, second, strict=True)] == unbroken
    found["same_ranks_and_workers"] = "the same order" if same else "another order"
    for name, size, workers in (("other_ranks", stretches[1][0], 1), ("other_workers", ranks, 2)):
        try:
            for rank in range(size):
                loader = open_energon(folder, rank, size, workers)
                loader.restore_state_global(state)
                taken = take_energon(loader, share)
            found[name] = f"taken up; the last rank gave {taken[:4]} where it would have given {second[-1][:4]}"
        except (AssertionError, ValueError, RuntimeError) as error:
            found[name] = f"refused: {type(error).__name__}: {str(error) or 'without a word'}"
    return found


def write_mds(folder: Path, samples: int) -> None:
    """Shards of numbers in MosaicML's form."""
    writer = importlib.import_module("streaming").MDSWriter
    with writer(out=str(folder), columns={"id": "int"}, size_limit=1 << 10) as out:
        for sample in range(samples):
            out.write({"id": sample})


def streaming_rank(folder: Path, state: Path, count: int) -> list[int]:
    """The next samples of this process's rank; the state file is read, and written by the first rank."""
    module = importlib.import_module("streaming")
    ranks = int(os.environ["WORLD_SIZE"])
    dataset = module.StreamingDataset(
        local=str(folder), shuffle=True, shuffle_seed=1, num_canonical_nodes=1, batch_size=BATCH // ranks
    )
    loader = module.StreamingDataLoader(dataset, batch_size=BATCH // ranks, num_workers=0)
    if state.is_file():
        loader.load_state_dict(json.loads(state.read_text()))
    batches: Iterator[Any] = iter(loader)
    taken = [batch["id"].tolist() for batch in islice(batches, count // BATCH)]
    if os.environ["RANK"] == "0":
        state.with_suffix(".next").write_text(json.dumps(loader.state_dict()))
    return [sample for batch in taken for sample in batch]


def run_ranks(folder: Path, state: Path, ranks: int, count: int) -> list[int]:
    """All ranks of a stretch, each a process of its own; the batches of each step in the order of ranks."""
    command = [sys.executable, __file__, "streaming_rank", str(folder), str(count), str(state)]
    places = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29650}
    processes = [
        subprocess.Popen(
            command,
            env=os.environ
            | {key: str(value) for key, value in places.items()}
            | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(ranks)
    ]
    lines = [process.communicate(timeout=300)[0].splitlines()[-1] for process in processes]
    taken, own = [json.loads(line) for line in lines], BATCH // ranks
    return [
        sample for step in range(count // BATCH) for part in taken for sample in part[step * own : (step + 1) * own]
    ]


def streaming(folder: Path, samples: int, stretches: Stretches) -> dict[str, object]:
    """An epoch without a stop, and one with other ranks at each stretch."""
    write_mds(folder, samples)
    state = folder.with_suffix(".json")
    unbroken = run_ranks(folder, state, stretches[0][0], sum(count for _, count in stretches))
    changed = []
    for ranks, count in stretches:
        changed += run_ranks(folder, state, ranks, count)
        shutil.move(state.with_suffix(".next"), state)
    return {"version": version("mosaicml-streaming"), "unbroken": unbroken, "changed": changed}


def main(which: str, folder: str, samples: str, rest: str) -> None:
    """Entry point."""
    if which == "streaming_rank":
        print(json.dumps(streaming_rank(Path(folder), Path(rest), int(samples))))
        return
    sides = {"energon": energon, "streaming": streaming}
    print(json.dumps(sides[which](Path(folder), int(samples), json.loads(rest))))


if __name__ == "__main__":
    main(*sys.argv[1:5])
