"""The root of every job's settings. A job is found by the type of its root; see `run.py`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.config.checks import check, check_positive, check_seed
from flagscale_vla.config.data import ActionConfig, Answer, CodeIds, DataConfig
from flagscale_vla.config.image import TOKEN_PIXELS
from flagscale_vla.config.layout import check_layout, check_rows, check_vocab
from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.config.optim import OptimConfig
from flagscale_vla.config.parallel import Fp8, ParallelConfig, PlatformConfig

FP8_SIDE = 16
"""What each side of an 8-bit matrix product must be a multiple of."""

TOKENS_PER_SECOND = {VisionKind.qwen2_5_vl: 2, VisionKind.qwen2_vl: 0}
"""Rotary time positions in a second of film (Qwen2.5-VL's config.json); 0 where steps of time are counted."""


class Verb(Enum):
    """What to do with a training run; given as `action=VERB` on the command line."""

    run = "run"
    dryrun = "dryrun"
    """check the settings, print parameter counts, allocate nothing"""


@dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """When weights are saved and how many saves are kept."""

    every: int
    """steps between saves; the last step is always saved"""
    keep: int
    """newest saves kept"""
    background: bool
    """copy weights and state, and write the copy while training goes on; false waits and needs no room for a copy"""

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            check_positive(f"checkpoint.{name}", self.__getattribute__(name))


@dataclass(slots=True, kw_only=True)
class ReportConfig:
    """What a run tells while it goes."""

    every: int
    """steps between lines of `metrics.jsonl`"""
    samples: int
    """samples of the first step drawn in the report"""
    tensorboard: bool
    wandb: bool
    """log to Weights & Biases; with WANDB_MODE=offline nothing leaves the machine"""

    def __post_init__(self) -> None:
        check_positive("report.every", self.every)
        check(self.samples >= 0, "report.samples", self.samples, "must not be negative", 4)


@dataclass(slots=True, kw_only=True)
class TrainRun:
    """Pretraining or fine-tuning a model."""

    output: str
    verb: Verb
    model: ModelConfig
    data: DataConfig
    action: ActionConfig
    parallel: ParallelConfig
    optim: OptimConfig
    platform: PlatformConfig
    checkpoint: CheckpointConfig
    report: ReportConfig
    steps: int
    global_packs: int
    """rows in one optimizer step, over all data-parallel ranks and micro-batches"""
    seed: int
    init: str
    """a checkpoint to start the weights from; empty to start from random ones"""

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/tiny")
        for name in ("steps", "global_packs"):
            check_positive(name, self.__getattribute__(name))
        check_seed(self.seed)
        self._check_pictures()
        check_layout(self.model, self.parallel)
        least = self.data.image.max_pixels // TOKEN_PIXELS + self.action.horizon + 1
        check_rows(self.parallel, self.data.pack_length, least, self.global_packs)
        self._check_codes()
        self._check_fp8()

    def _check_pictures(self) -> None:
        """Pictures are cut for Qwen's towers alone: InternVL's can be planned, imported and exported, not trained."""
        kind = self.model.vision.kind
        ok = kind is not VisionKind.internvit or self.verb is not Verb.run
        rule = "pictures of samples are cut in patches for Qwen's vision towers alone, so this model cannot be trained"
        check(ok, "model.vision.kind", kind.value, rule, VisionKind.qwen2_vl.value)
        rate = self.data.image.video.tokens_per_second
        right = TOKENS_PER_SECOND.get(kind, rate)
        rule = f"model.vision.kind={kind.value} has its own, which its exported config.json says too"
        ok = rate == right or self.verb is not Verb.run
        check(ok, "data.image.video.tokens_per_second", rate, rule, right)

    def _check_codes(self) -> None:
        """Codes are learnt by the text loss; ids that are new need rows that every tensor rank has equally many of."""
        if self.action.answer is Answer.flow:
            return
        rule = f"action.answer={self.action.answer.value} learns its codes by this loss"
        check(self.optim.loss.text > 0, "optim.loss.text", self.optim.loss.text, rule, 1.0)
        if self.action.ids is CodeIds.appended:
            check_vocab(self.model.language.vocab, self.parallel.tensor)

    def _check_fp8(self) -> None:
        """Transformer Engine's 8-bit products want every side to be a multiple of 16. The vision tower has none."""
        if self.platform.fp8 is Fp8.none:
            return
        parallel, language = self.parallel, self.model.language
        sides = {
            "model.language.hidden": language.hidden // parallel.tensor,
            "model.language.intermediate": language.intermediate // parallel.tensor,
            "model.language.heads": (language.heads + 2 * language.kv_heads) * language.head_dim // parallel.tensor,
            "data.pack_length": self.data.pack_length
            // (parallel.context * (parallel.tensor if parallel.sequence else 1)),
        }
        for key, side in sides.items():
            rule = f"a rank's share of {key} would be {side}, which is no multiple of {FP8_SIDE}"
            check(side % FP8_SIDE == 0, "platform.fp8", self.platform.fp8.value, rule, Fp8.none.value)

    @property
    def num_microbatches(self) -> int:
        """Rows each data-parallel rank runs in one optimizer step."""
        return self.global_packs // self.parallel.data


class Tier(Enum):
    """Which simulators demo episodes are recorded in."""

    light = "light"
    """Meta-World alone, extra `sim`"""
    full = "full"
    """Meta-World, robosuite and LIBERO, extra `sim-full`"""


@dataclass(slots=True, kw_only=True)
class RecordRun:
    """Driving scripted experts in simulators and writing their episodes as shards."""

    output: str
    tier: Tier
    tasks: list[str]
    """tasks to record, as `simulator/task` or `simulator/task/robot`; empty for all of the tier"""
    episodes: int
    """successful episodes per task for training"""
    heldout_episodes: int
    """further ones per task, from other seeds, never trained on"""
    image_pixels: int
    """side of a camera frame; 0 records without pictures, which takes minutes instead of an hour"""
    horizon: int
    """future steps stored with each frame; the longest chunk that can be trained"""
    noise: float
    """standard deviation of the noise on the executed action, in half of the episodes"""
    max_steps: int
    """control steps at 20 Hz before an episode counts as failed; 0 for each world's own limit"""
    questions: int
    """questions asked about each episode, written to `OUTPUT/questions`; 0 for none"""
    question_steps: int
    """steps of an action turn among the questions, before the robot looks again"""
    processes: int
    seed: int

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/demo")
        for name in ("episodes", "horizon", "question_steps", "processes"):
            check_positive(name, self.__getattribute__(name))
        self._check_questions()
        check(self.image_pixels >= 0, "image_pixels", self.image_pixels, "must not be negative; 0 is no pictures", 112)
        check(self.max_steps >= 0, "max_steps", self.max_steps, "must not be negative", 0)
        check(self.heldout_episodes >= 0, "heldout_episodes", self.heldout_episodes, "must not be negative", 2)
        check(self.noise >= 0, "noise", self.noise, "must not be negative", 0.4)
        check_seed(self.seed)

    def _check_questions(self) -> None:
        """Questions are about pictures, and an action turn is part of the stored chunk."""
        check(self.questions >= 0, "questions", self.questions, "must not be negative; 0 is none", 6)
        ok = self.questions == 0 or self.image_pixels > 0
        check(ok, "questions", self.questions, f"image_pixels={self.image_pixels} gives nothing to ask about", 0)
        ok = self.questions == 0 or self.question_steps <= self.horizon
        check(ok, "question_steps", self.question_steps, f"must be at most horizon={self.horizon}", self.horizon)


@dataclass(slots=True, kw_only=True)
class EvalRun:
    """Rolling a checkpoint out in the simulator it was trained for."""

    output: str
    checkpoint: str
    """a checkpoint, or a training run's output, whose newest checkpoint is taken"""
    shards: str
    """folder whose `heldout-*.tar` the open-loop error is measured on"""
    tasks: list[str]
    episodes: int
    """episodes per task, on seeds never recorded"""
    max_steps: int
    """control steps at 20 Hz before an episode counts as failed; 0 for each world's own limit"""
    execute_steps: int
    """steps of each chunk that are carried out before the next observation"""
    denoise_steps: int
    temperature: float
    """of codes that are drawn; 0 takes the likeliest"""
    image_pixels: int
    confidence: float
    """level of the interval printed with the success rate"""
    videos: int
    """episodes per task written as a video"""
    processes: int
    seed: int
    platform: PlatformConfig

    def __post_init__(self) -> None:
        check(bool(self.output), "output", self.output or "''", "must name a folder for results", "runs/eval")
        rule = "must name a checkpoint or a training run's output folder"
        check(bool(self.checkpoint), "checkpoint", "''", rule, "runs/train_tiny_action")
        check(bool(self.shards), "shards", "''", "must name a folder of tar shards", "runs/demo")
        check(bool(self.tasks), "tasks", self.tasks, "must name at least one task", "[metaworld/door-open]")
        for name in ("episodes", "execute_steps", "denoise_steps", "image_pixels", "processes"):
            check_positive(name, self.__getattribute__(name))
        check(self.max_steps >= 0, "max_steps", self.max_steps, "must not be negative", 0)
        check(self.temperature >= 0, "temperature", self.temperature, "must not be negative", 0.0)
        check(0.0 < self.confidence < 1.0, "confidence", self.confidence, "must lie between 0 and 1", 0.95)
        check(0 <= self.videos <= self.episodes, "videos", self.videos, f"must lie in [0, episodes={self.episodes}]", 0)
        check_seed(self.seed)
        fp8 = self.platform.fp8
        rule = "is for training: a prompt may have any number of tokens, 8-bit products only multiples of 16"
        check(fp8 is Fp8.none, "platform.fp8", fp8.value, rule, Fp8.none.value)
