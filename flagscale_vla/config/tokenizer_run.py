"""The root of the settings that fit an action tokenizer, and those of the baselines it is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive, check_seed, check_share
from flagscale_vla.config.data import CacheConfig
from flagscale_vla.config.parallel import Device, Dtype, Fp8, MatmulPrecision, ParallelConfig, PlatformConfig
from flagscale_vla.config.tokenizer import OmniSatConfig


class TokenizerKind(Enum):
    """What is fitted."""

    omnisat = "omnisat"
    """residual codes of control points, learnt step by step"""
    fast = "fast"
    """cosine coefficients and byte pairs, in one go"""
    beast = "beast"
    """binned control points, in one go"""
    binning = "binning"
    """a bin for each value, in one go"""


@dataclass(slots=True, kw_only=True)
class ChunksConfig:
    """Which chunks are fitted and measured on."""

    shards: str
    """folder of `train-*.tar` and `heldout-*.tar`"""
    cache: CacheConfig
    max_chunks: int
    """chunks fitted on at most; those whose keys have the smallest hashes, a uniform choice"""
    max_heldout_chunks: int
    """chunks measured on at most, chosen likewise"""
    max_bad_share: float
    """stop where more than this share of the samples is quarantined; fewer than 100 count as 100"""
    max_bad_shard_share: float
    """the same for each shard; fewer than 20 count as 20"""

    def __post_init__(self) -> None:
        check(bool(self.shards), "data.shards", self.shards or "''", "must name a folder of tar shards", "runs/demo")
        for name in ("max_chunks", "max_heldout_chunks"):
            check_positive(f"data.{name}", self.__getattribute__(name))
        check_share("data.max_bad_share", self.max_bad_share)
        check_share("data.max_bad_shard_share", self.max_bad_shard_share)


@dataclass(slots=True, kw_only=True)
class FastConfig:
    """FAST (arXiv 2501.09747)."""

    scale: float
    """what cosine coefficients are multiplied by before they are rounded"""
    vocab: int
    """byte pairs and single characters together"""
    max_chunks: int
    """chunks that byte pairs are fitted on at most; a fit takes time with each, and its rate hardly changes past a few
    thousand"""

    def __post_init__(self) -> None:
        for name in ("scale", "vocab", "max_chunks"):
            check_positive(f"fast.{name}", self.__getattribute__(name))


@dataclass(slots=True, kw_only=True)
class BeastConfig:
    """BEAST (arXiv 2506.06072): one token for each control point of each dim."""

    points: int
    """control points of each dim"""
    degree: int
    """of the polynomial pieces; where a comparison leaves fewer points, the best of the degrees that they allow"""
    gripper_degree: int
    """the same for grippers; 0 is steps"""
    ridge: float
    bins: int

    def __post_init__(self) -> None:
        check_positive("beast.points", self.points)
        for name in ("degree", "gripper_degree"):
            degree = self.__getattribute__(name)
            rule = f"must lie in [0, beast.points={self.points})"
            check(0 <= degree < self.points, f"beast.{name}", degree, rule, 0)
        check(self.ridge >= 0, "beast.ridge", self.ridge, "must not be negative", 1e-6)
        check(self.bins > 1, "beast.bins", self.bins, "must be at least 2", 256)


@dataclass(slots=True, kw_only=True)
class BinningConfig:
    """One token for each value, as RT-2 and OpenVLA have it."""

    bins: int

    def __post_init__(self) -> None:
        check(self.bins > 1, "binning.bins", self.bins, "must be at least 2", 256)


@dataclass(slots=True, kw_only=True)
class CurvesConfig:
    """Where rate-distortion curves are sampled besides the point in question; empty draws that point alone."""

    fast_scales: list[float]
    beast_points: list[int]

    def __post_init__(self) -> None:
        for name in ("fast_scales", "beast_points"):
            values = self.__getattribute__(name)
            shown = f"[{','.join(f'{value:g}' for value in values)}]"
            check(all(value > 0 for value in values), f"curves.{name}", shown, "must be above zero", "[4,8]")


@dataclass(slots=True, kw_only=True)
class FitConfig:
    """How codes are learnt."""

    steps: int
    batch: int
    """chunks of one step, over all processes"""
    start_chunks: int
    """chunks that the codebooks start from, by k-means; the same on every process"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "start_chunks"):
            check_positive(f"fit.{name}", self.__getattribute__(name))


@dataclass(slots=True, kw_only=True)
class FitCheckpointConfig:
    """When the state of a fit is saved and how many saves are kept."""

    every: int
    """steps between saves; the last step is always saved"""
    keep: int
    """newest saves kept"""

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            check_positive(f"checkpoint.{name}", self.__getattribute__(name))


@dataclass(slots=True, kw_only=True)
class FitReportConfig:
    """What a fit tells while it goes, and how much the page shows."""

    every: int
    """steps between lines of `metrics.jsonl`"""
    overlays: int
    """held-out chunks of each robot drawn over their reconstructions"""

    def __post_init__(self) -> None:
        check_positive("report.every", self.every)
        check(self.overlays >= 0, "report.overlays", self.overlays, "must not be negative", 3)


@dataclass(slots=True, kw_only=True)
class TokenizerRun:
    """Fitting an action tokenizer on the chunks of shards, and measuring it on held-out ones."""

    output: str
    kind: TokenizerKind
    data: ChunksConfig
    horizon: int
    """steps of a chunk, H: the first ones of those that the shards hold"""
    robots_left_out: list[str]
    """robots that the statistics alone see; their error shows how codes carry over to robots never fitted on"""
    codec: OmniSatConfig
    fast: FastConfig
    beast: BeastConfig
    binning: BinningConfig
    curves: CurvesConfig
    fit: FitConfig
    parallel: ParallelConfig
    threads: int
    """CPU threads of one process; 0 shares the machine's cores out evenly among its processes"""
    checkpoint: FitCheckpointConfig
    report: FitReportConfig
    seed: int

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/tokenizer")
        check_positive("horizon", self.horizon)
        check(self.threads >= 0, "threads", self.threads, "must not be negative", 0)
        left = f"[{','.join(self.robots_left_out)}]"
        twice = len(set(self.robots_left_out)) < len(self.robots_left_out)
        check(not twice, "robots_left_out", left, "names a robot twice", "[]")
        check_seed(self.seed)
        ok = self.kind is not TokenizerKind.beast or not self.robots_left_out
        rule = "kind=beast finds the range of its bins in a robot's own chunks"
        check(ok, "robots_left_out", left, rule, "[]")
        self._check_parallel()

    def _check_parallel(self) -> None:
        """Every process holds the whole codec, a few hundred kilobytes, and takes a share of each step's chunks."""
        rule = "every process holds the whole codec: parallel.data alone shares the work out"
        for name in ("tensor", "pipeline", "context"):
            degree = self.parallel.__getattribute__(name)
            check(degree == 1, f"parallel.{name}", degree, rule, 1)
        ok = self.kind is TokenizerKind.omnisat or self.parallel.data == 1
        check(ok, "parallel.data", self.parallel.data, f"kind={self.kind.value} is fitted in one go, by one process", 1)
        ok = self.fit.batch % self.parallel.data == 0
        check(ok, "parallel.data", self.parallel.data, f"must divide fit.batch={self.fit.batch}", 1)

    @property
    def platform(self) -> PlatformConfig:
        """The CPU: a step is a few small products, which a GPU would take longer to start than to do."""
        return PlatformConfig(
            device=Device.cpu,
            dtype=Dtype.float32,
            fp8=Fp8.none,
            matmul=MatmulPrecision.highest,
            threads=self.threads,
        )
