"""How fast OmniSAT is: a chunk there and back, and its quantiser beside vector-quantize-pytorch's.

    python tools/bench_tokenizer.py                       a codec of conf/codec/omnisat.yaml, begun on made-up chunks
    python tools/bench_tokenizer.py tokenizer=DIR         one that was fitted

One thread, in batches. The other side is GroupedResidualVQ in evaluation mode, with the same codebooks and latents: two
groups, as position and rotation of an arm. Runs alternate, and the fastest of each side counts, in the thread's own CPU
time: what else the machine does can only add to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from flagscale_vla.action.fitter import Fitter
from flagscale_vla.action.omnisat import OmniSat, config_from_json
from flagscale_vla.action.quantizer import ResidualQuantizer
from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.tokenizer import Floats
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.layout import Kind
from flagscale_vla.robots.statistics import Gatherer, RobotStatistics, no_statistics

CONFIG = Path(__file__).parents[1] / "conf" / "codec" / "omnisat.yaml"
HORIZON = 16
ARM = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
CHUNKS = 4096
ROUNDS = 15
PACKAGES = "vector-quantize-pytorch einops einx frozendict loguru torch-einops-utils"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Microseconds a chunk."""

    encode: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Of two quantisers with the same codebooks on the same latents."""

    ours: float
    """microseconds a chunk"""
    theirs: float
    different: int
    """indices that are not the same"""
    total: int


def fastest(*calls: Callable[[], object]) -> list[float]:
    """CPU seconds of the fastest of some runs of each call, which take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for number, call in enumerate(calls):
            began = time.thread_time()
            call()
            best[number] = min(best[number], time.thread_time() - began)
    return best


def made_up_chunks(count: int) -> Floats:
    """Smooth chunks f32[count, HORIZON, 7] whose gripper switches."""
    generator = np.random.default_rng(0)
    speeds, starts = generator.uniform(0, 0.7, (count, 1, 7)), generator.uniform(0, 6.3, (count, 1, 7))
    chunks = np.clip(1.3 * np.sin(speeds * np.arange(HORIZON)[:, None] + starts), -1, 1)
    chunks[..., 6] = np.sign(chunks[..., 6])
    return chunks.astype(np.float32)


def begun_codec() -> OmniSat:
    """A codec of the shipped settings, as k-means leaves it: as fast as a fitted one."""
    settings = OmegaConf.create({"codec": OmegaConf.load(CONFIG), "fit": {"steps": 1}})
    resolved = OmegaConf.to_container(settings, resolve=True)
    config = config_from_json(resolved["codec"] | {"lr": 1e-3, "ridge": 1e-6})
    chunks = made_up_chunks(CHUNKS)
    gatherer = Gatherer(7)
    gatherer.add(chunks[:, 0])
    robot = Embodiment(name="arm", state=("s",), action=ARM, cameras=(), fps=20)
    statistics = {"arm": RobotStatistics(state=no_statistics(), action=gatherer.finish())}
    fitter = Fitter(config, {"arm": robot}, statistics, HORIZON, 0, lambda _: None)
    fitter.begin({"arm": torch.from_numpy(chunks)}, {"arm": torch.ones(chunks.shape[:2], dtype=torch.bool)})
    return fitter.tokenizer()


def time_codec(codec: OmniSat, robot: str) -> Speed:
    """A robot's chunks there and back."""
    chunks = made_up_chunks(CHUNKS)[..., : len(codec.embodiments[robot].action)]
    codes = codec.encode(robot, chunks)
    encode, decode = fastest(lambda: codec.encode(robot, chunks), lambda: codec.decode(robot, codes, HORIZON))
    return Speed(encode=1e6 * encode / CHUNKS, decode=1e6 * decode / CHUNKS)


def compare(books: Tensor, latents: Tensor) -> Comparison:
    """Greedy codes f32[G, L, K, d] of latents f32[n, G * d], ours and theirs.

    Raises:
        SystemExit: the other side is not installed; says how to.
    """
    try:
        from vector_quantize_pytorch import GroupedResidualVQ
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}. The other side is missing: pip install --no-deps {PACKAGES}") from error
    groups, layers, codes, width = books.shape
    theirs = GroupedResidualVQ(dim=groups * width, groups=groups, num_quantizers=layers, codebook_size=codes).eval()
    for own, residual in zip(books, theirs.rvqs, strict=True):
        for book, layer in zip(own, residual.layers, strict=True):
            layer._codebook.embed.data.copy_(book[None])
            layer._codebook.initted.data.fill_(True)
    ours = [ResidualQuantizer(book) for book in books]
    parts = latents.split(width, dim=1)

    def encode_ours() -> Tensor:
        return torch.stack([quantizer.encode(part, layers) for quantizer, part in zip(ours, parts, strict=True)])

    def encode_theirs() -> Tensor:
        return torch.as_tensor(theirs(latents[None])[1][:, 0])

    with torch.no_grad():
        different = int((encode_ours() != encode_theirs()).sum())
        seconds = fastest(encode_ours, encode_theirs)
    mine, other = (1e6 * each / len(latents) for each in seconds)
    return Comparison(ours=mine, theirs=other, different=different, total=groups * layers * len(latents))


def made_up_books(layers: int, codes: int, width: int) -> tuple[Tensor, Tensor]:
    """Codebooks f32[2, L, K, d] that grow finer, and latents f32[n, 2 * d]."""
    generator = torch.Generator().manual_seed(0)
    scales = 0.8 ** torch.arange(layers)[:, None, None]
    books = torch.randn(2, layers, codes, width, generator=generator) * scales
    return books, 2 * torch.randn(CHUNKS, 2 * width, generator=generator)


def main(arguments: list[str]) -> None:
    """Print both comparisons."""
    torch.set_num_threads(1)
    folder = next((Path(each.removeprefix("tokenizer=")) for each in arguments if each.startswith("tokenizer=")), None)
    codec = load_action_tokenizer(folder) if folder else begun_codec()
    if not isinstance(codec, OmniSat):
        raise SystemExit(f"tokenizer={folder}: its kind is {codec.kind!r}; this tool times `omnisat`")
    for robot, embodiment in codec.embodiments.items():
        speed = time_codec(codec, robot)
        both = speed.encode + speed.decode
        dims = len(embodiment.action)
        print(f"{robot}, {dims} dims: encode {speed.encode:.1f} + decode {speed.decode:.1f} = {both:.1f} us a chunk")
    entry = codec.coders[Kind.position][1].books
    found = compare(*made_up_books(*entry.shape))
    print(
        f"residual codes of 2 groups x {len(entry)} layers x {entry.shape[1]} codes: ours {found.ours:.1f} us a chunk, "
        f"vector-quantize-pytorch {found.theirs:.1f}: {found.theirs / found.ours:.1f} times as fast; "
        f"{found.total - found.different} of {found.total} indices equal"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
