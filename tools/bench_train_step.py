"""Compare our training step with a plain `transformers` loop that pads: useful tokens per second, in one run.

    python tools/bench_train_step.py [data.shards=runs/demo] [key=value ...] [--rows 6] [--passes 5]

Both sides train the model of `conf/train_tiny_action.yaml` from the same weights on the same samples (same noise and
flow time). Ours reads packed rows; theirs reads the same samples, shuffled, in batches of equal count that are padded
to the longest. Losses and the gradient's norm over all samples must agree in full float32 before anything is timed.
Their steps alternate with ours, and the median pass counts, because a machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from bench_peer import Padded, Peer, PeerModel, pad
from bench_samples import Samples
from hydra import compose, initialize_config_dir

from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.data.pooled import pack_pooled
from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import Platform, choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.records import PackedBatch
from flagscale_vla.train.objective import objective

CONF = Path(__file__).resolve().parents[1] / "conf"
TOLERANCE = 1e-4
MIXES = {"mixed": False, "equal": True}
"""By name, whether all samples have the same length."""


def compose_run(overrides: list[str]) -> TrainRun:
    """The tiny run's settings."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        run = settings_of(compose("train_tiny_action", ["platform.device=cpu", *overrides]))
    assert isinstance(run, TrainRun)
    return run


def make_batches(run: TrainRun, samples: Samples, num_rows: int) -> tuple[list[PackedBatch], list[Padded]]:
    """The first `num_rows` rows, and the same samples, shuffled, as many to a batch as the mean row holds."""
    raws, lengths = [], []
    while sum(lengths) < (num_rows + 2) * run.data.pack_length:
        raws.append(samples.draw(len(raws)))
        lengths.append(samples.recipe.length(raws[-1]))
    packed = pack_pooled(lengths, run.data.pack_length, run.data.pool)[:num_rows]
    rows = [[samples.recipe.sample(raws[n], seed=run.seed, epoch=0, augment=True) for n in row] for row in packed]
    everything = [sample for row in rows for sample in row]
    order = np.random.default_rng(run.seed).permutation(len(everything)).tolist()
    count = round(len(everything) / num_rows)
    batches = [
        pad([everything[n] for n in order[first : first + count]], samples.recipe.vocabulary)
        for first in range(0, len(order), count)
    ]
    return [samples.recipe.pack(row, run.data.pack_length) for row in rows], batches


def compare(ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
    """Refuse to go on where text loss, flow loss or gradient norm differ."""
    for name, one, other in zip(("text loss", "flow loss", "gradient norm"), ours, theirs, strict=True):
        if not abs(one - other) <= TOLERANCE * abs(other):
            sys.exit(f"{name} differs: ours {one:.8g}, theirs {other:.8g}. No ratio is given for unequal work")


def our_step(engine: Engine, rows: list[PackedBatch], lr_share: float) -> tuple[float, float, float]:
    """One optimizer step over all rows: text loss, flow loss (means), and the gradient's norm."""
    result = engine.train_step(rows, lr_share)
    sums = result.losses
    return float(sums.ce) / max(1, sums.num_labels), float(sums.flow) / max(1, sums.num_action_values), result.grad_norm


def their_step(peer: Peer, batches: list[Padded], lr_share: float) -> tuple[float, float, float]:
    """The same of the peer, which the stand-ins that Megatron-core needs on a CPU must not slow down."""
    with torch._C.DisableTorchFunction():
        return peer.train_step(batches, lr_share)


def seconds(step: Callable[[], object]) -> float:
    """How long a step takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def time_passes(engine: Engine, peer: Peer, rows: list[PackedBatch], batches: list[Padded], passes: int) -> np.ndarray:
    """Seconds f64[passes, 2] of each pass over all samples, ours and theirs; their steps alternate."""
    totals = np.zeros((passes, 2))
    for total in totals:
        for place in range(max(len(rows), len(batches))):
            if place < len(rows):
                total[0] += seconds(partial(our_step, engine, [rows[place]], 1.0))
            if place < len(batches):
                total[1] += seconds(partial(their_step, peer, [batches[place]], 1.0))
    return totals


def measure(
    run: TrainRun, topology: Topology, platform: Platform, name: str, num_rows: int, passes: int
) -> dict[str, float]:
    """All figures of one mix, by name."""
    samples = Samples(run, equal=MIXES[name])
    rows, batches = make_batches(run, samples, num_rows)
    stage = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    engine = Engine(stage, objective, run, topology, platform)
    weights = {key: value for key, value in engine.chunks[0].state_dict().items() if isinstance(value, torch.Tensor)}
    peer = Peer(PeerModel(run.model, samples.recipe.vocabulary, weights), run.optim)
    torch.set_float32_matmul_precision("highest")
    # At a rate of zero, so that the weights stay equal.
    ours, theirs = our_step(engine, rows, 0.0), their_step(peer, batches, 0.0)
    compare(ours, theirs)
    torch.set_float32_matmul_precision(run.platform.matmul.value)
    tokens = sum(row.num_tokens for row in rows)
    time_passes(engine, peer, rows[:1], batches[:1], 1)
    totals = time_passes(engine, peer, rows, batches, passes)
    speeds = [tokens / statistics.median(column) for column in totals.T.tolist()]
    places = len(rows) * run.data.pack_length, sum(batch.tokens.numel() for batch in batches)
    figures = {f"ratio_{name}": speeds[0] / speeds[1]}
    for side, speed, place, steps, step in zip(
        ("ours", "theirs"), speeds, places, (len(rows), len(batches)), (ours, theirs), strict=True
    ):
        figures |= {
            f"tokens_per_second_{name}_{side}": speed,
            f"ms_per_step_{name}_{side}": 1e3 * tokens / speed / steps,
            f"padding_share_{name}_{side}": 1 - tokens / place,
            f"text_loss_{name}_{side}": step[0],
            f"flow_loss_{name}_{side}": step[1],
            f"grad_norm_{name}_{side}": step[2],
        }
    return figures


def tell(figures: dict[str, float]) -> None:
    """Print a table of all mixes."""
    columns = [f"{name}_{side}" for name in MIXES for side in ("ours", "theirs")]
    print(f"{'':20}" + "".join(f"{column:>15}" for column in columns))
    for row in ("tokens_per_second", "ms_per_step", "padding_share", "text_loss", "flow_loss", "grad_norm"):
        print(f"{row:20}" + "".join(f"{figures[f'{row}_{column}']:15.5g}" for column in columns))
    for name in MIXES:
        print(f"ratio_{name:14}{figures[f'ratio_{name}']:15.3f}")


def main() -> None:
    """Measure both mixes; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6, help="packed rows, each an optimizer step of ours")
    parser.add_argument("--passes", type=int, default=5, help="timed passes over all rows; the median counts")
    parser.add_argument("overrides", nargs="*", help="settings, such as data.shards=runs/demo platform.threads=2")
    options = parser.parse_args()
    run = compose_run(options.overrides)
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    figures: dict[str, float] = {}
    for name in MIXES:
        figures |= measure(run, topology, platform, name, options.rows, options.passes)
    topology.stop()
    tell(figures)
    about = {
        "device": platform.name,
        "threads": torch.get_num_threads(),
        "matmul": run.platform.matmul.value,
        **{name: version(name) for name in ("torch", "transformers", "megatron-core")},
    }
    print(json.dumps(figures | about))


if __name__ == "__main__":
    main()
