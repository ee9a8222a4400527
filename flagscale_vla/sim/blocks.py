"""Recording cut into blocks: one task, a few episodes, one shard. A block is done when its shard is there."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from flagscale_vla.config.runs import RecordRun
from flagscale_vla.data.shards import ShardWriter, shard_path
from flagscale_vla.robots.embodiments import Embodiment, embodiment_from_json
from flagscale_vla.sim.episodes import Episode, record_episode, samples
from flagscale_vla.sim.questions.asking import Asking, Refusal, Sample
from flagscale_vla.sim.seeds import Purpose, episode_seed
from flagscale_vla.sim.workers import open_world
from flagscale_vla.sim.worlds.world import World

SMALLEST_BLOCK = 5
"""Episodes; so few keep all processes busy to the end of a small run."""
BLOCKS_PER_TASK = 8
ATTEMPTS = 11
"""Tries per episode that is wanted, before the expert counts as unable. A prime, so that worlds which choose among a
fixed number of initial states by seed use them all."""
BINS = 20
"""Of the histogram of each action dim over [-1, 1]."""
LOGS = "blocks"
UNFINISHED = "unfinished"
QUESTIONS = "questions"
"""Folder of the shards with questions, numbered as those with the episodes that they ask about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Episodes `first` to `first + count - 1` of a task, written as one shard."""

    task: str
    purpose: Purpose
    shard: int
    first: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLog:
    """What a block's recording was like; kept beside the shard for the report."""

    task: str
    split: str
    shard: int
    embodiment: Embodiment
    lengths: tuple[int, ...]
    """control steps of each episode kept"""
    rejected: int
    """episodes the expert did not finish"""
    histogram: tuple[tuple[int, ...], ...]
    """per action dim, how many actions fall in each of `BINS` equal parts of [-1, 1]"""
    seconds: float
    questions: dict[str, int]
    """samples of each kind"""
    refused: tuple[Refusal, ...]
    """questions that had no clear answer"""


@dataclass(slots=True)
class Answers:
    """What came of a block's questions."""

    questions: Counter[str] = field(default_factory=Counter)
    refused: list[Refusal] = field(default_factory=list)

    def write(self, answers: Iterable[Sample | Refusal], writer: ShardWriter) -> None:
        """Store the samples, and count both."""
        for answer in answers:
            if isinstance(answer, Refusal):
                self.refused.append(answer)
            else:
                writer.write(answer.key, answer.segments, answer.meta)
                self.questions[answer.kind.value] += 1


def plan_blocks(run: RecordRun, tasks: Sequence[str]) -> list[Block]:
    """All blocks of a run. Depends on nothing that may differ between two starts of it, as the number of processes."""
    train = split_blocks(tasks, Purpose.train, 0, run.episodes)
    return train + split_blocks(tasks, Purpose.heldout, run.episodes, run.heldout_episodes)


def split_blocks(tasks: Sequence[str], purpose: Purpose, first: int, episodes: int) -> list[Block]:
    """The blocks of one split, shards numbered from 0."""
    size = max(SMALLEST_BLOCK, -(-episodes // BLOCKS_PER_TASK))
    starts = [(task, start) for task in tasks for start in range(0, episodes, size)]
    return [
        Block(task=task, purpose=purpose, shard=shard, first=first + start, count=min(size, episodes - start))
        for shard, (task, start) in enumerate(starts)
    ]


def is_recorded(folder: Path, block: Block) -> bool:
    """Whether a block's shard is there."""
    return shard_path(folder, block.purpose.name, block.shard).exists()


def record_block(job: tuple[RecordRun, Block]) -> BlockLog:
    """Record one block and put its shards into the output folder, whole, that of the episodes as the last thing.

    Raises:
        ValueError: the expert fails too often.
    """
    run, block = job
    begin = time.perf_counter()
    world = open_world(block.task, run.image_pixels)
    # A folder of its own: a run that was killed may still have a worker that is writing the same shard.
    private = Path(run.output) / UNFINISHED / f"{os.getpid()}-{block.purpose.name}-{block.shard}"
    asking = Asking(count=run.questions, steps=run.question_steps, horizon=run.horizon, seed=run.seed)
    episodes, rejected, answers = [], 0, Answers()
    with open_shard(private, block) as writer, open_shard(private / QUESTIONS, block) as question_writer:
        for number in range(block.first, block.first + block.count):
            episode, failed = record_success(world, run, block, number)
            for sample in samples(episode, run.horizon):
                writer.write(*sample)
            answers.write(asking.ask(episode, world.scene), question_writer)
            episodes.append(replace(episode, truth=None))
            rejected += failed
    seconds = time.perf_counter() - begin
    log = summarize_block(block, world.embodiment, episodes, rejected, seconds, answers)
    save_log(Path(run.output), log)
    publish(private, Path(run.output), block)
    return log


def open_shard(folder: Path, block: Block) -> ShardWriter:
    """A writer of the one shard that a block has in a folder."""
    return ShardWriter(folder, block.purpose.name, max_bytes=2**62, first=block.shard)


def publish(private: Path, folder: Path, block: Block) -> None:
    """Move a block's shards where they are looked for. Without questions there is one; that of the episodes tells that
    the block is done, so it comes last."""
    name = shard_path(Path(), block.purpose.name, block.shard)
    if (private / QUESTIONS / name).exists():
        (folder / QUESTIONS).mkdir(exist_ok=True)
        os.replace(private / QUESTIONS / name, folder / QUESTIONS / name)
    os.replace(private / name, folder / name)
    shutil.rmtree(private, ignore_errors=True)


def record_success(world: World, run: RecordRun, block: Block, number: int) -> tuple[Episode, int]:
    """Try until the expert finishes an episode; returns it and how many tries failed.

    Every other episode is recorded with noise on what is executed.

    Raises:
        ValueError: `ATTEMPTS` tries failed.
    """
    noise = run.noise if number % 2 else 0.0
    for attempt in range(ATTEMPTS):
        seed = episode_seed(block.purpose, run.seed, number * ATTEMPTS + attempt)
        episode = record_episode(
            world, seed=seed, number=number, noise=noise, max_steps=run.max_steps, truth=run.questions > 0
        )
        if episode is not None:
            return episode, attempt
    raise ValueError(
        f"task {block.task!r}: the expert failed {ATTEMPTS} times in a row within {run.max_steps or world.max_steps} "
        f"steps (max_steps={run.max_steps}) and under noise={noise}; give it more steps or less noise"
    )


def summarize_block(
    block: Block,
    embodiment: Embodiment,
    episodes: Sequence[Episode],
    rejected: int,
    seconds: float,
    answers: Answers,
) -> BlockLog:
    """Counts of one block."""
    actions = np.concatenate([episode.actions() for episode in episodes])
    counts = [np.histogram(column, bins=BINS, range=(-1.0, 1.0))[0] for column in actions.T]
    return BlockLog(
        task=block.task,
        split=block.purpose.name,
        shard=block.shard,
        embodiment=embodiment,
        lengths=tuple(len(episode.frames) for episode in episodes),
        rejected=rejected,
        histogram=tuple(tuple(int(n) for n in row) for row in counts),
        seconds=seconds,
        questions=dict(answers.questions),
        refused=tuple(answers.refused),
    )


def log_path(folder: Path, split: str, shard: int) -> Path:
    """Where a block's log lies."""
    return folder / LOGS / f"{split}-{shard:06d}.json"


def save_log(folder: Path, log: BlockLog) -> None:
    """Write a block's log in one step."""
    path = log_path(folder, log.split, log.shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(asdict(log)), encoding="utf-8")
    os.replace(partial, path)


def load_log(folder: Path, block: Block) -> BlockLog:
    """The log of a block that is recorded.

    Raises:
        ValueError: it is missing beside its shard.
    """
    path = log_path(folder, block.purpose.name, block.shard)
    if not path.is_file():
        raise ValueError(f"{path} is missing beside its shard; delete the shard to record it again")
    entry = json.loads(path.read_text(encoding="utf-8"))
    embodiment = entry.pop("embodiment")
    return BlockLog(
        task=entry["task"],
        split=entry["split"],
        shard=entry["shard"],
        embodiment=embodiment_from_json(embodiment["name"], embodiment),
        lengths=tuple(entry["lengths"]),
        rejected=entry["rejected"],
        histogram=tuple(tuple(row) for row in entry["histogram"]),
        seconds=entry["seconds"],
        questions=entry["questions"],
        refused=tuple(Refusal(**refusal) for refusal in entry["refused"]),
    )
