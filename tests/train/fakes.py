"""Stand-ins for the parts around a checkpoint that need processes and a model."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flagscale_vla.mcore.storage import WholeWriter


class FakeTopology:
    """One rank alone."""

    is_writer = True

    def barrier(self) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag


@dataclass
class FakeEngine:
    """Writes a tensor where the real one writes its pieces.

    `killed` stands for a SIGKILL while it does, `error` for a disk that fails, `held` for a disk that is slow.
    """

    killed: bool = False
    error: OSError | None = None
    held: bool = False
    saved: list[Path] = field(default_factory=list)
    writing: list[Future[None]] = field(default_factory=list)

    def prepare_save(self) -> None:
        pass

    def start_save(self, folder: Path) -> Future[None]:
        with WholeWriter(folder) as writer:
            writer.write("weight", torch.ones(3))
        if self.killed:
            raise KeyboardInterrupt
        self.saved.append(folder)
        future: Future[None] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        elif not self.held:
            future.set_result(None)
        self.writing.append(future)
        return future
