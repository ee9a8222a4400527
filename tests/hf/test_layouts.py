"""Weights that were imported, loaded under a layout and saved by it are exported as they came, bit for bit, and what
transformers makes of the export is what we make of the import."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from megatron.core import parallel_state
from torch import Tensor

from flagscale_vla.config.checkpoints import WEIGHTS, checkpoint_folder, find_checkpoint
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.records import PackedBatch
from flagscale_vla.train.checkpoint import is_heads
from flagscale_vla.train.objective import objective
from tests.helpers import run_ranks
from tests.hf.directories import VOCAB, describe, export_checkpoint, import_directory, write_directory
from tests.hf.test_round_trip import assert_same, canonical, load_peer
from tests.model.peers import peer_outputs
from tests.model.rows import FAMILIES, IMAGE_TOKEN, IMAGES, Document, make_row, settings, tiled
from tests.model.test_transformers import our_outputs

TOLERANCE = 1e-5
WORLD_SIZE, LENGTH = 4, 256
LAYOUTS = {
    "TP1xPP1": ["parallel.data=4"],
    "TP2xPP1": ["parallel.tensor=2", "parallel.data=2"],
    "TP1xPP2": ["parallel.pipeline=2", "parallel.data=2"],
    "TP2xPP2": ["parallel.tensor=2", "parallel.pipeline=2"],
    # Two key-value heads on four tensor ranks: each is on two of them.
    "TP4": ["parallel.tensor=4"],
}
MODELS = [(family, tied) for family in FAMILIES for tied in (True, False)]
ONE = "TP1xPP1"


def place(base: Path, family: str, tied: bool) -> Path:
    return base / f"{family}_{'tied' if tied else 'untied'}"


def documents(family: str) -> list[Document]:
    return tiled(IMAGES) if family == "internvl" else IMAGES


def load_and_save(rank: int, base: str) -> dict[str, Tensor]:
    """Load every import under every layout and save it again; the logits of each model where it is whole."""
    logits: dict[str, Tensor] = {}
    for name, layout in LAYOUTS.items():
        run = small_run(*MODELS[0], *layout)
        start = Topology.here if torch.distributed.is_initialized() else Topology.start
        topology = start(run.parallel, choose_platform(run.platform))
        for family, tied in MODELS:
            engine = reload(topology, small_run(family, tied, *layout), place(Path(base), family, tied), name)
            if name == ONE:
                logits[place(Path(base), family, tied).name] = our_logits(engine, family)
        parallel_state.destroy_model_parallel()
    return logits


def reload(topology: Topology, run: TrainRun, here: Path, name: str) -> Engine:
    platform = choose_platform(run.platform)
    build = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    engine = Engine(build, objective, run, topology, platform)
    engine.load(find_checkpoint(here / "ours") / WEIGHTS, with_optimizer=False, may_miss=is_heads)
    engine.save(checkpoint_folder(here / name, 7) / WEIGHTS)
    return engine


@torch.no_grad()
def our_logits(engine: Engine, family: str) -> Tensor:
    model = engine.chunks[0].eval()
    return our_outputs(model, packed_row(family))[1]


def packed_row(family: str) -> PackedBatch:
    return make_row(documents(family), LENGTH, kind=small_run(family, True).model.vision.kind)


def small_run(family: str, tied: bool, *layout: str) -> TrainRun:
    tie = f"model.language.tied={str(tied).lower()}"
    return settings(*FAMILIES[family], f"model.language.vocab={VOCAB}", "global_packs=4", tie, *layout)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    base = tmp_path_factory.mktemp("layouts")
    for family, tied in MODELS:
        here = place(base, family, tied)
        model = write_directory(here / "in", family, tied)
        import_directory(here / "in", here / "ours", model.flow)
    return base, run_ranks(load_and_save, WORLD_SIZE, str(base), timeout_s=300)[0]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "tied"), MODELS)
def test_out_is_what_came_in(saved: tuple[Path, dict[str, Tensor]], layout: str, family: str, tied: bool) -> None:
    here = place(saved[0], family, tied)
    describe(checkpoint_folder(here / layout, 7), small_run(family, tied).model)
    summary = export_checkpoint(here / layout, here / f"{layout}_out")
    assert_same(canonical(here / f"{layout}_out"), canonical(here / "in"))
    assert summary["flow_head"]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(("family", "tied"), MODELS)
@torch.no_grad()
def test_logits_equal_transformers(saved: tuple[Path, dict[str, Tensor]], family: str, tied: bool) -> None:
    base, logits = saved
    here = place(base, family, tied)
    export_checkpoint(here / "ours", here / "peer")
    theirs, _ = load_peer(here / "peer")
    # Rows of tests have pictures stand in a token of their own.
    theirs.config.image_token_id = IMAGE_TOKEN
    kind = small_run(family, tied).model.vision.kind
    _, reference = peer_outputs(theirs.eval(), kind, documents(family), packed_row(family))
    assert (logits[here.name] - reference).abs().max() < TOLERANCE
