"""Stand-ins for the parts around a checkpoint that need processes and a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


class FakeTopology:
    is_writer = True

    def barrier(self) -> None:
        pass


@dataclass
class FakeEngine:
    """Writes a file where the real one writes shards; `fails` stands for a kill while it does."""

    fails: bool = False
    saved: list[Path] = field(default_factory=list)
    loaded: list[tuple[Path, bool]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        if self.fails:
            raise KeyboardInterrupt
        (folder / "shard").write_text("weights")
        self.saved.append(folder)

    def load(self, folder: Path, *, weights_only: bool) -> None:
        self.loaded.append((folder, weights_only))
