"""A sample that cannot be used: what is wrong with it, and the budget of how many may be."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger(__name__)

SHOWN = 5
LEAST_READS = 100
LEAST_OF_SHARD = 20


class BadSampleError(ValueError):
    """A sample that cannot be used; `member` is its key, or the one member at fault."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"{member}: {reason}")
        self.member, self.reason = member, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One line of the quarantine list."""

    shard: str
    """file name of the tar"""
    member: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}/{self.member}: {self.reason}"

    @staticmethod
    def of(shard: str, error: BadSampleError) -> Fault:
        """The fault that an error in a sample of `shard` stands for."""
        return Fault(shard=shard, member=error.member.removeprefix(f"{shard}/"), reason=error.reason)


class Quarantine:
    """Keeps and counts samples that cannot be used, and stops a run that meets too many.

    Args:
        path: JSON lines of `Fault`s; new ones are appended, each fault once. Processes had better not share a file.
        max_bad_share: largest share that may be bad, of the samples of an index and of the samples read since; the
            first 100 count as 100.
        max_bad_shard_share: largest share of a shard's samples that may be bad, counted likewise; its first 20 count
            as 20.
    """

    def __init__(self, path: Path, max_bad_share: float, max_bad_shard_share: float) -> None:
        self.path, self.max_bad_share, self.max_bad_shard_share = path, max_bad_share, max_bad_shard_share
        self.num_bad = 0
        """bad samples met, in indices and in reading"""
        self._reads: Counter[str] = Counter()
        self._faults: list[Fault] = []
        self._bad: Counter[str] = Counter()
        self._listed = {(fault.shard, fault.member) for fault in load_faults(path)}

    def inspect(self, sound: Mapping[str, int], faults: Sequence[Fault], *, listed: bool) -> None:
        """Note that an index was made, with so many `sound` samples of each shard, and these `faults` found.

        Args:
            sound: by shard.
            faults: of the rest.
            listed: whether to list them.

        Raises:
            ValueError: too large a share of the index, or of a shard, is bad; names the first few.
        """
        self.num_bad += len(faults)
        for fault in faults if listed else ():
            self._list(fault)
        bad = Counter(fault.shard for fault in faults)
        self._check(faults, bad, Counter(sound) + bad, "indexed")

    def count(self, reads: Mapping[str, int], faults: Sequence[Fault]) -> None:
        """Note that so many more samples of each shard were read, of which `faults` were bad.

        Raises:
            ValueError: too large a share of all that was read, or of what was read of a shard, is bad; names the first
                few.
        """
        self._reads.update(reads)
        self.num_bad += len(faults)
        for fault in faults:
            self._faults.append(fault)
            self._bad[fault.shard] += 1
            self._list(fault)
        if faults:
            self._check(self._faults, {fault.shard: self._bad[fault.shard] for fault in faults}, self._reads, "read")

    def _list(self, fault: Fault) -> None:
        if (fault.shard, fault.member) in self._listed:
            return
        logger.warning("quarantined %s", fault)
        self._listed.add((fault.shard, fault.member))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(fault), ensure_ascii=False) + "\n")

    def _check(self, faults: Sequence[Fault], bad: Mapping[str, int], samples: Counter[str], verb: str) -> None:
        """Refuse too many faults of so many samples by shard, of which `bad` are those of the shards to look at."""
        if len(faults) > self.max_bad_share * max(samples.total(), LEAST_READS):
            self._stop(faults, f"{samples.total()} samples {verb}", "data.max_bad_share", self.max_bad_share)
        for shard, number in bad.items():
            if number > self.max_bad_shard_share * max(samples[shard], LEAST_OF_SHARD):
                own = [fault for fault in faults if fault.shard == shard]
                what = f"{samples[shard]} samples {verb} of {shard}"
                self._stop(own, what, "data.max_bad_shard_share", self.max_bad_shard_share)

    def _stop(self, faults: Sequence[Fault], what: str, key: str, limit: float) -> NoReturn:
        shown = "; ".join(str(fault) for fault in faults[:SHOWN])
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(
            f"{len(faults)} of {what} are bad, past {key}={limit}: {shown}{more}. "
            f"{self.path} lists them. Repair or remove them, or raise {key}"
        )


def load_faults(path: Path) -> list[Fault]:
    """The faults listed in a file; none where it does not exist."""
    if not path.is_file():
        return []
    return [Fault(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
