"""The dry run of a training config: one rank of many, instantiated on tensors that hold nothing, and what it holds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.meta import RankBytes, count_weights, layer_numbers, meta_platform, rank_bytes, rank_on_meta
from flagscale_vla.mcore.optimizer import part_of
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.model.size import count_parameters
from flagscale_vla.model.vla import Predictions, VisionLanguageAction
from flagscale_vla.records import LossSums, PackedBatch

logger = logging.getLogger(__name__)

PROCESSES = (128, 1024)
"""How many processes a config is tried on, besides its own number: as many of them as its degrees divide."""

PARTS = ("vision", "merger", "language", "head")
COLUMNS = ("rank", "stage", "layers", *PARTS, "parameters", "weights", "gradients", "main", "moments", "total")
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The first rank of a pipeline stage. Its others hold as much, but for where padding falls in their shares."""

    rank: int
    number: int
    layers: tuple[int, ...]
    """language layers, from 0"""
    parameters: Counter[str]
    """on this rank, by part of the model"""
    whole: Counter[str]
    """of the whole model on this stage, by part: over its tensor ranks, each tensor once"""
    bytes: RankBytes


def run(run: TrainRun) -> None:
    """Say what a run would train and what each rank would hold. Reads, writes and allocates nothing."""
    counts = count_parameters(run.model)
    platform = meta_platform(run.platform)
    logger.info("%s", describe(run, counts))
    for parallel in layouts(run.parallel):
        stages = build_stages(run, parallel, platform)
        check_total(stages, counts)
        logger.info("%s, weights %s\n%s", title(parallel), platform.dtype, table(stages))
    logger.info("Each row is its stage's first rank. Activations, and what kernels and NCCL keep, come on top.")


def describe(run: TrainRun, counts: dict[str, int]) -> str:
    """The model's parameters and the run's steps."""
    lines = [
        f"{name:<10} {count:>18,} parameters" for name, count in (*counts.items(), ("total", sum(counts.values())))
    ]
    rows = f"{run.global_packs:,} rows of {run.data.pack_length:,} tokens"
    ranks = f"{run.parallel.data:,} data-parallel ranks x {run.num_microbatches:,} micro-batches"
    return "\n".join(["what is trained", *lines, f"{run.steps:,} steps of {rows}: {ranks}"])


def layouts(parallel: ParallelConfig) -> list[ParallelConfig]:
    """The config's own layout, and the same degrees filled up with data parallelism, by number of processes."""
    model_ranks = parallel.world_size // parallel.data
    sizes = {parallel.data, *(max(1, number // model_ranks) for number in PROCESSES)}
    return [replace(parallel, data=size, hosts=1) for size in sorted(sizes)]


def build_stages(run: TrainRun, parallel: ParallelConfig, platform: Platform) -> list[Stage]:
    """Instantiate the first rank of every pipeline stage: model, gradient buffers and optimizer."""
    # As many rows as any layout of these degrees takes: a rank holds the same whatever their number.
    sized = replace(run, parallel=parallel, global_packs=parallel.data * parallel.pipeline)
    return [build_stage(sized, platform, number) for number in range(parallel.pipeline)]


def build_stage(run: TrainRun, platform: Platform, number: int) -> Stage:
    """Instantiate the first rank of one pipeline stage."""
    parallel = run.parallel
    rank = number * parallel.world_size // parallel.pipeline
    with rank_on_meta(rank, parallel, platform) as topology:
        build_chunk = partial(VisionLanguageAction, run.model, parallel, platform, topology)
        engine = Engine(build_chunk, no_objective, run, topology, platform)
        counts = [
            (part_of(name), *pair) for chunk in engine.chunks for name, pair in count_weights(chunk, parallel.tensor)
        ]
        return Stage(
            rank=rank,
            number=number,
            layers=tuple(layer for chunk in engine.chunks for layer in layer_numbers(chunk.language.decoder)),
            parameters=_sum((part, here) for part, here, _ in counts),
            whole=_sum((part, everywhere) for part, _, everywhere in counts),
            bytes=rank_bytes(engine),
        )


def no_objective(output: Predictions, batch: PackedBatch) -> LossSums:
    """In place of a loss: a dry run takes no step."""
    raise AssertionError("a dry run takes no step")


def _sum(counts: Iterable[tuple[str, int]]) -> Counter[str]:
    total = Counter[str]()
    for part, count in counts:
        total[part] += count
    return total


def check_total(stages: Sequence[Stage], expected: dict[str, int]) -> None:
    """Refuse a layout whose ranks do not hold every parameter of the model once."""
    held = sum((stage.whole for stage in stages), Counter[str]())
    assert held == expected, f"the stages hold {dict(held)} parameters together, the model has {expected}"


def title(parallel: ParallelConfig) -> str:
    """How many processes there are and what they are split into."""
    names = ("tensor", "pipeline", "virtual", "context", "data")
    degrees = " x ".join(
        f"{name} {parallel.__getattribute__(name):,}" for name in names if name != "virtual" or parallel.virtual > 1
    )
    return f"{parallel.world_size:,} processes: {degrees}"


def table(stages: Sequence[Stage]) -> str:
    """The first and last stage, and the one that holds most where it is neither, under a line of names."""
    heaviest = max(stages, key=lambda stage: stage.bytes.total)
    shown = sorted({0, heaviest.number, len(stages) - 1})
    rows = [COLUMNS, *(cells(stages[number]) for number in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def cells(stage: Stage) -> tuple[str, ...]:
    """A stage's row of the table."""
    held = stage.bytes
    counts = [stage.parameters[part] for part in PARTS]
    sizes = (held.weights, held.gradients, held.main, held.moments, held.total)
    return (
        f"{stage.rank:,}",
        str(stage.number),
        runs(stage.layers),
        *(f"{count:,}" for count in (*counts, sum(counts))),
        *map(readable, sizes),
    )


def runs(numbers: Sequence[int]) -> str:
    """Ascending numbers as runs, such as 0-8,36-44; a dash for none."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ",".join(f"{start}-{end}" for start, end in zip(starts, ends, strict=True)) or "-"


def readable(size: int) -> str:
    """Bytes in GiB, or MiB below one GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.2f} MiB"
