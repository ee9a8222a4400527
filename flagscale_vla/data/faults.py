"""A sample that cannot be used: what is wrong with it, and the budget of how many may be."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

SHOWN = 5
LEAST_READS = 100


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
    """

    def __init__(self, path: Path, max_bad_share: float) -> None:
        self.path, self.max_bad_share = path, max_bad_share
        self.num_bad = 0
        """bad samples met, in indices and in reading"""
        self._reads = 0
        self._faults: list[Fault] = []
        self._listed = {(fault.shard, fault.member) for fault in load_faults(path)}

    def inspect(self, num_samples: int, faults: Sequence[Fault], *, listed: bool) -> None:
        """Note that an index of `num_samples` was made, and these `faults` found; `listed` says whether to list them.

        Raises:
            ValueError: too large a share of the index is bad; names the first few.
        """
        self.num_bad += len(faults)
        for fault in faults if listed else ():
            self._list(fault)
        self._check(faults, num_samples + len(faults), "samples indexed")

    def count(self, reads: int, faults: Sequence[Fault]) -> None:
        """Note that `reads` more samples were read, of which `faults` were bad.

        Raises:
            ValueError: too large a share of all that was read is bad; names the first few.
        """
        self._reads += reads
        self.num_bad += len(faults)
        for fault in faults:
            self._faults.append(fault)
            self._list(fault)
        self._check(self._faults, self._reads, "samples read")

    def _list(self, fault: Fault) -> None:
        if (fault.shard, fault.member) in self._listed:
            return
        logger.warning("quarantined %s", fault)
        self._listed.add((fault.shard, fault.member))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(fault), ensure_ascii=False) + "\n")

    def _check(self, faults: Sequence[Fault], total: int, what: str) -> None:
        if len(faults) <= self.max_bad_share * max(total, LEAST_READS):
            return
        shown = "; ".join(str(fault) for fault in faults[:SHOWN])
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(
            f"{len(faults)} of {total} {what} are bad, past data.max_bad_share={self.max_bad_share}: {shown}{more}. "
            f"{self.path} lists them. Repair or remove them, or raise data.max_bad_share"
        )


def load_faults(path: Path) -> list[Fault]:
    """The faults listed in a file; none where it does not exist."""
    if not path.is_file():
        return []
    return [Fault(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
