"""How fast one language layer and one vision layer of Qwen2.5-VL-3B run on a GPU, forward and backward, on packed rows.

    python tools/bench_gpu.py [--tokens 16384] [--steps 20]

Prints the table for docs/performance.md: Transformer Engine, with and without 8-bit products, torch's variable-length
attention, and the loop over documents. Tokens are all useful: there is no padding. Operations are counted for matrix
products alone: 6 for each weight and token, and 12 x rows x keys x heads x head width for attention, half of that where
it is causal. Without a GPU it says so and ends with status 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.model import LanguageConfig, ModelConfig, VisionConfig
from flagscale_vla.config.parallel import Fp8, ParallelConfig
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.mcore import attention
from flagscale_vla.mcore.layers import has_transformer_engine, plain_layers
from flagscale_vla.mcore.megatron import MegatronModule
from flagscale_vla.mcore.platform import Platform, choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.mcore.transformer import (
    language_block,
    language_transformer,
    run_block,
    vision_block,
    vision_transformer,
)
from flagscale_vla.mcore.varlen import has_kernel
from flagscale_vla.model.patches import plan_patches

CONF = Path(__file__).resolve().parents[1] / "conf"
SHORTEST, LONGEST = 150, 2000
"""Tokens of a document, evenly drawn: a robot's frame and a long conversation."""
PICTURE = (1, 16, 20)
"""Patches of a picture along time, height and width: 80 tokens."""
WARM_UP = 5


@dataclass(frozen=True)
class Rows:
    """What a layer is run on."""

    bounds: Tensor
    """i32[1, N+1], on the CPU"""
    causal: bool

    @property
    def count(self) -> int:
        """Rows in all."""
        return int(self.bounds[0, -1])

    def attention_work(self, width: int) -> float:
        """Operations of forward and backward; `width` is heads x head width."""
        squares = sum((end - start) ** 2 for start, end in pairwise(self.bounds[0].tolist()))
        return 12.0 * squares * width * (0.5 if self.causal else 1.0)


@dataclass(frozen=True)
class Speed:
    """What a layer reached."""

    tokens_per_second: float
    tflops: float


def settings(device: str, *overrides: str) -> TrainRun:
    """The 3B run's settings on one process."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        alone = ["parallel.data=1", "parallel.hosts=1", "global_packs=1", f"platform.device={device}"]
        run = settings_of(compose("train_3b_action", overrides=[*alone, *overrides]))
    assert isinstance(run, TrainRun)
    return run


def documents(tokens: int) -> Rows:
    """Documents of drawn lengths that fill `tokens`."""
    lengths = np.random.default_rng(0).integers(SHORTEST, LONGEST, tokens // SHORTEST)
    ends = np.cumsum(lengths)
    bounds = [0, *ends[ends < tokens], tokens]
    return Rows(bounds=torch.tensor([bounds], dtype=torch.int32), causal=True)


def pictures(patches: int, window_pixels: int, row: int) -> Rows:
    """Windows (row 0) or whole pictures (row 1) that come to about `patches` patches."""
    plan = plan_patches((PICTURE,) * max(1, patches // int(np.prod(PICTURE))), window_pixels)
    return Rows(bounds=plan.bounds[row : row + 1], causal=False)


def language_layer(config: LanguageConfig, platform: Platform) -> MegatronModule:
    """One layer of the language model, without embedding and final norm."""
    transformer = language_transformer(replace(config, layers=1), ParallelConfig.alone(), platform)
    return ready(language_block(transformer, platform.layers, first=True, last=False, chunk=None), platform)


def vision_layer(config: VisionConfig, platform: Platform) -> MegatronModule:
    """One layer of the vision tower."""
    one = replace(config, layers=1, full_attention_layers=[0])
    transformer = vision_transformer(one, ParallelConfig.alone(), platform)
    return ready(vision_block(transformer, platform.layers, frozenset()), platform)


def ready(block: MegatronModule, platform: Platform) -> MegatronModule:
    """A block on its device with drawn weights."""
    block.to(platform.device)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.02)
    return block


def measure(block: MegatronModule, rows: Rows, hidden: int, head_dim: int, platform: Platform, steps: int) -> Speed:
    """Median of `steps` passes forward and backward, after some that do not count."""
    inputs = torch.randn(rows.count, 1, hidden, device=platform.device).to(platform.dtype).requires_grad_()
    angles = torch.rand(rows.count, head_dim // 2, device=platform.device)
    seconds = [one_pass(block, inputs, rows.bounds, angles, platform) for _ in range(WARM_UP + steps)]
    median = statistics.median(seconds[WARM_UP:])
    weights = sum(weight.numel() for weight in block.parameters() if weight.dim() > 1)
    work = 6.0 * weights * rows.count + rows.attention_work(hidden)
    return Speed(tokens_per_second=rows.count / median, tflops=work / median / 1e12)


def one_pass(block: MegatronModule, inputs: Tensor, bounds: Tensor, angles: Tensor, platform: Platform) -> float:
    """Seconds of one pass, the rounding of weights to 8 bits included."""
    block.set_is_first_microbatch()
    wait(platform)
    start = time.perf_counter()
    run_block(block, inputs, bounds, angles).float().sum().backward()
    wait(platform)
    block.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def wait(platform: Platform) -> None:
    """Until everything that was started has ended."""
    if platform.device.type != "cpu":
        torch.accelerator.synchronize()


def layers_of(model: ModelConfig, platform: Platform, tokens: int, steps: int) -> Iterator[tuple[str, Speed]]:
    """Each kind of layer and what it reaches."""
    language, vision = model.language, model.vision
    block = language_layer(language, platform)
    rows = documents(tokens)
    yield "language", measure(block, rows, language.hidden, language.head_dim, platform, steps)
    block, head_dim = vision_layer(vision, platform), vision.hidden // vision.heads
    for name, row in (("vision, windows", 0), ("vision, whole pictures", 1)):
        rows = pictures(tokens, vision.window_pixels, row)
        yield name, measure(block, rows, vision.hidden, head_dim, platform, steps)


def paths(platform: Platform, takes_fp8: bool) -> Iterator[tuple[str, Platform, Callable[[Tensor], bool]]]:
    """Ways to compute: name, platform, and which queries torch's variable-length kernel is given."""
    if has_transformer_engine():
        yield "Transformer Engine", platform, has_kernel
    if takes_fp8:
        yield "Transformer Engine, 8 bits", replace(platform, fp8=True), has_kernel
    plain = replace(platform, layers=plain_layers())
    yield "torch's varlen", plain, has_kernel
    yield "document by document", plain, lambda query: False


def can_use_fp8(run: TrainRun) -> bool:
    """Whether this machine has 8-bit products."""
    try:
        choose_platform(replace(run.platform, fp8=Fp8.hybrid))
    except ConfigError:
        return False
    return True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Speed of one layer of Qwen2.5-VL-3B on a GPU")
    parser.add_argument("--tokens", type=int, default=16384, help="rows of the language layer; patches of the vision's")
    parser.add_argument("--steps", type=int, default=20, help="passes that count")
    arguments = parser.parse_args()
    run = settings("gpu")
    try:
        platform = choose_platform(run.platform)
    except ConfigError:
        sys.exit("bench_gpu: this machine has no GPU that torch can see, so there is nothing to measure")
    topology = Topology.start(run.parallel, platform)
    print(f"{platform.name}, torch {torch.__version__}, {platform.dtype}, {arguments.tokens:,} rows\n")
    print("| path | layer | tokens/s | TFLOP/s |\n|---|---|---|---|")
    for name, chosen, kernel in paths(platform, can_use_fp8(run)):
        attention.__dict__["has_kernel"] = kernel
        for layer, speed in layers_of(run.model, chosen, arguments.tokens, arguments.steps):
            print(f"| {name} | {layer} | {speed.tokens_per_second:,.0f} | {speed.tflops:.1f} |")
    topology.stop()


if __name__ == "__main__":
    main()
