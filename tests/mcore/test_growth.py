"""An embedding with more rows than its checkpoint, under another layout and in another precision."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import run_ranks
from tests.model.rows import settings

EMBEDDING = "language.embedding.word_embeddings.weight"
OUTPUT = "language.output_layer.weight"
OLD, NEW = 128, 384


def build(vocab: int, *overrides: str) -> Engine:
    run = settings("global_packs=2", f"model.language.vocab={vocab}", *overrides)
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    stage = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    return Engine(stage, objective, run, topology, platform)


def save(rank: int, folder: str, overrides: list[str]) -> None:
    """A small model, and a larger one as `grow` draws it."""
    for name, vocab, seed in (("old", OLD, 0), ("drawn", NEW, 7)):
        engine = build(vocab, *overrides, f"seed={seed}")
        engine.save(Path(folder) / name)
        engine.topology.stop()


def grow(rank: int, source: str, target: str, overrides: list[str]) -> list[str]:
    engine = build(NEW, *overrides, "seed=7")
    left = engine.load(Path(source), with_optimizer=False, may_grow=lambda name: name in (EMBEDDING, OUTPUT))
    engine.save(Path(target))
    return left


def refuse(rank: int, source: str) -> str:
    engine = build(NEW, "seed=7")
    with pytest.raises(ValueError, match="embedding") as raised:
        engine.load(Path(source), with_optimizer=False)
    return str(raised.value)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        # The second tensor rank begins behind the checkpoint's last row.
        ["parallel.tensor=2", "model.language.tied=false"],
        ["parallel.pipeline=2", "platform.dtype=bfloat16"],
        ["parallel.data=2", "platform.dtype=bfloat16", "model.language.tied=false"],
    ],
    ids=["tensor", "pipeline", "data"],
)
def test_old_rows_are_kept_and_new_ones_drawn(tmp_path: Path, overrides: list[str]) -> None:
    tied = [override for override in overrides if "tied" in override]
    run_ranks(save, 1, str(tmp_path), tied)
    assert run_ranks(grow, 2, str(tmp_path / "old"), str(tmp_path / "new"), overrides) == [[], []]
    old, drawn, new = (StoredTensors.open(tmp_path / name) for name in ("old", "drawn", "new"))
    for name in old.weights:
        # The float32 weights that a bfloat16 run keeps are the checkpoint's own, not rounded.
        found = new.read(f"main/{name}" if f"main/{name}" in new else name)
        rows = old.shape(name)[0]
        assert torch.equal(found[:rows], old.read(name)), name
        if name in (EMBEDDING, OUTPUT):
            assert found.shape[0] == NEW
            assert torch.equal(found[rows:], drawn.read(name)[rows:].to(new.dtype(name)).float())


def test_what_may_not_grow_is_refused(tmp_path: Path) -> None:
    run_ranks(save, 1, str(tmp_path), [])
    message = run_ranks(refuse, 1, str(tmp_path / "old"))[0]
    assert f"{EMBEDDING} of shape ({NEW}, 64) is needed, it is ({OLD}, 64)" in message
