"""Stand-ins for the parts around a checkpoint, so that its files can be tested without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace


class FakeTopology:
    is_writer = True

    def barrier(self) -> None:
        pass


@dataclass
class FakeEngine:
    """Writes a file where the real one writes shards; `fails` stands for a kill while it does."""

    fails: bool = False
    saved: list[Path] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        if self.fails:
            raise KeyboardInterrupt
        (folder / "shard").write_text("weights")
        self.saved.append(folder)


class FakeRecipe:
    vocabulary = SimpleNamespace(ids={"<|im_start|>": 300})

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "recipe.json").write_text("{}")
