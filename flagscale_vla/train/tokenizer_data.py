"""What an action tokenizer is fitted and measured on: the chunks of a folder, as a run asks for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flagscale_vla.action.pins import pins_in_words
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.data.actions import Chunks, open_chunks
from flagscale_vla.data.faults import Quarantine
from flagscale_vla.data.prepare import open_embodiments
from flagscale_vla.data.store import Store, open_store
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import RobotStatistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitData:
    """Chunks by what they are for."""

    train: Chunks
    """fitted on"""
    heldout: Chunks
    """of the same robots, measured on"""
    left_out: Chunks
    """held-out chunks of robots that were not fitted on"""
    embodiments: dict[str, Embodiment]
    """every robot that has actions, those left out among them"""
    statistics: dict[str, RobotStatistics]
    """of the same robots, over the training split"""
    quarantined: int
    """samples of both splits that could not be used"""
    invalid: int
    """those of them that could be read, but whose numbers are no chunk"""

    @property
    def heldout_dims(self) -> float:
        """Mean number of action dims over the held-out chunks."""
        robots = self.heldout.robots.values()
        return sum(len(robot) * robot.values.shape[2] for robot in robots) / len(self.heldout)


def open_data(run: TokenizerRun, *, writes: bool) -> FitData:
    """Find the chunks of both splits, or what an earlier start kept of them.

    Args:
        run: the settings.
        writes: whether this process lists what is quarantined; others wait until it is done.

    Raises:
        ConfigError: there are no chunks, or `robots_left_out` names a robot that has none.
        ValueError: no shards, or too large a share of them cannot be used.
    """
    store = open_store(run.data.shards, run.data.cache)
    train, heldout = (_open_split(run, store, split, writes=writes) for split in ("train", "heldout"))
    check_chunks_there(run, train)
    left = run.robots_left_out
    check_left_out(left, train.robots)
    check_heldout(run, train, heldout)
    fitted = [name for name in train.robots if name not in left]
    statistics = {name: train.statistics[name] for name in train.robots}
    robots = open_embodiments(store)
    data = FitData(
        train=train.only(fitted).choose(run.data.max_chunks),
        heldout=heldout.only(fitted).choose(run.data.max_heldout_chunks),
        left_out=heldout.only(left).choose(run.data.max_heldout_chunks),
        embodiments={name: robots[name] for name in statistics},
        statistics=statistics,
        quarantined=len(train.faults) + len(heldout.faults),
        invalid=train.num_invalid + heldout.num_invalid,
    )
    if writes:
        _tell(store.url, data, pins=run.codec.pin_start)
    return data


def _open_split(run: TokenizerRun, store: Store, split: str, *, writes: bool) -> Chunks:
    chunks = open_chunks(store, split, run.horizon)
    path = Path(run.output) / "quarantine" / f"{split}.jsonl"
    quarantine = Quarantine(path, run.data.max_bad_share, run.data.max_bad_shard_share)
    quarantine.inspect(chunks.sound, chunks.faults, listed=writes)
    return chunks


def _tell(url: str, data: FitData, *, pins: bool) -> None:
    logger.info("%s: %d chunks to fit on, %d held out", url, len(data.train), len(data.heldout))
    for name, robot in data.train.robots.items():
        embodiment = data.embodiments[name]
        words = f"; {pins_in_words(embodiment)}" if pins else ""
        logger.info("  %s: %d chunks, action %s%s", name, len(robot), " ".join(embodiment.action), words)
    if data.quarantined:
        logger.warning("%d samples quarantined, %d of them with invalid chunks", data.quarantined, data.invalid)


def check_chunks_there(run: TokenizerRun, train: Chunks) -> None:
    """Refuse shards without actions.

    Raises:
        ConfigError: naming how many samples were looked at.
    """
    if not train.robots:
        raise ConfigError(
            f"data.shards={run.data.shards}: none of its {sum(train.sound.values())} usable samples has an action. "
            "This would pass: shards of robots, as record_demo writes them"
        )


def check_left_out(left: list[str], robots: Iterable[str]) -> None:
    """Refuse to leave out a robot that is not there, or all of them.

    Raises:
        ConfigError: naming the robots that are there.
    """
    known = sorted(robots)
    for name in left:
        if name not in known:
            raise ConfigError(
                f"robots_left_out={left}: no chunk is of robot {name!r}. This would pass: robots_left_out=[{known[0]}]"
                if len(known) > 1
                else f"robots_left_out={left}: the only robot is {known[0]!r}. This would pass: robots_left_out=[]"
            )
    if set(left) == set(known):
        raise ConfigError(f"robots_left_out={left}: leaves no robot to fit on. This would pass: robots_left_out=[]")


def check_heldout(run: TokenizerRun, train: Chunks, heldout: Chunks) -> None:
    """Refuse held-out chunks that statistics are missing for, or none of the robots that are fitted on.

    Raises:
        ConfigError: naming the robot.
    """
    for name in heldout.robots:
        if name not in train.robots:
            raise ConfigError(
                f"data.shards={run.data.shards}: robot {name!r} is in heldout-*.tar alone, without statistics to "
                "scale it by. This would pass: shards whose train-*.tar has it too"
            )
    if not any(name not in run.robots_left_out for name in heldout.robots):
        raise ConfigError(
            f"data.shards={run.data.shards}: heldout-*.tar has no chunk of a robot that is fitted on. "
            "This would pass: the output of record_demo with heldout_episodes above 0"
        )
