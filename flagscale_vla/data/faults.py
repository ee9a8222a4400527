"""A sample that cannot be used: what is wrong with it, and the budget of how many may be."""

from __future__ import annotations

import json
import logging
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


class Quarantine:
    """Keeps and counts samples that cannot be used, and stops a run that meets too many.

    Args:
        path: JSON lines of `Fault`s; kept faults are appended. Processes may share the file.
        max_bad_share: largest share of reads that may be bad; the first 100 reads count as 100.
    """

    def __init__(self, path: Path, max_bad_share: float) -> None:
        self.path, self.max_bad_share = path, max_bad_share
        self.reads = 0
        self.faults: list[Fault] = []
        self._listed = {(fault.shard, fault.member) for fault in load_faults(path)}

    def count(self, reads: int, faults: tuple[Fault, ...]) -> None:
        """Note that `reads` more samples were read, of which `faults` were bad.

        Raises:
            ValueError: more than the allowed share is bad; names the first few.
        """
        self.reads += reads
        for fault in faults:
            logger.warning("quarantined %s", fault)
            self.faults.append(fault)
            self._list(fault)
        self._check()

    def _list(self, fault: Fault) -> None:
        if (fault.shard, fault.member) in self._listed:
            return
        self._listed.add((fault.shard, fault.member))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(fault), ensure_ascii=False) + "\n")

    def _check(self) -> None:
        bad, reads = len(self.faults), max(self.reads, LEAST_READS)
        if bad <= self.max_bad_share * reads:
            return
        shown = "; ".join(str(fault) for fault in self.faults[:SHOWN])
        more = f"; and {bad - SHOWN} more" if bad > SHOWN else ""
        raise ValueError(
            f"{bad} of {self.reads} samples read are bad, past data.max_bad_share={self.max_bad_share}: {shown}{more}. "
            f"The whole list is in {self.path}. Repair or remove them, or raise data.max_bad_share"
        )


def load_faults(path: Path) -> list[Fault]:
    """The faults listed in a file; none where it does not exist."""
    if not path.is_file():
        return []
    return [Fault(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
