"""What a layout may change of a step is its time and memory: recompute, overlap, and the dtype of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import Job, run_jobs
from tests.mcore.gradients import whole_gradients
from tests.model.rows import ACTIONS, IMAGES, TEXT_ONLY, make_row, settings

ROWS = [TEXT_ONLY, IMAGES, ACTIONS, [*IMAGES, *ACTIONS]]
LANGUAGE, VISION = "parallel.language_recompute", "parallel.vision_recompute"
RECOMPUTES = {
    "attention": [f"{LANGUAGE}.granularity=selective"],
    "attention and MLP": [f"{LANGUAGE}.granularity=selective", f"{LANGUAGE}.modules=[core_attn,mlp]"],
    "every layer": [f"{LANGUAGE}.granularity=full"],
    "every two layers": [f"{LANGUAGE}.granularity=full", f"{LANGUAGE}.layers=2"],
    "the first layer": [f"{LANGUAGE}.granularity=full", f"{LANGUAGE}.method=block"],
    "attention of the tower": [f"{VISION}.granularity=selective"],
    "every layer of the tower": [f"{VISION}.granularity=full"],
    "all": [f"{LANGUAGE}.granularity=full", f"{VISION}.granularity=full"],
}
LESS = {"attention": 0.85, "every layer": 0.6, "every layer of the tower": 0.9, "all": 0.4}
"""Share of the saved bytes that may be left, where much should fall."""


@contextmanager
def engine_of(*overrides: str) -> Iterator[tuple[Engine, Topology]]:
    """A small model's engine on this process's rank."""
    run = settings("global_packs=4", *overrides)
    platform = choose_platform(run.platform)
    topology = Topology.start(run.parallel, platform)
    build_chunk = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    yield Engine(build_chunk, objective, run, topology, platform), topology
    topology.stop()


class SavedBytes:
    """Counts the bytes that a forward pass keeps for the backward pass; a storage counts once, weights do not."""

    def __init__(self, engine: Engine) -> None:
        self.weights = {weight.untyped_storage().data_ptr() for chunk in engine.chunks for weight in chunk.parameters()}
        self.storages: dict[int, int] = {}
        self.kept: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.storages[storage.data_ptr()] = storage.nbytes()
            # So that no other tensor takes its place in memory, and its count.
            self.kept.append(tensor)
        return tensor

    @property
    def total(self) -> int:
        return sum(self.storages.values())


def saved_and_gradients(_rank: int, overrides: list[str]) -> tuple[int, dict[str, Tensor]]:
    """Bytes kept by the forward passes of one step, and its gradients."""
    with engine_of(*overrides) as (engine, _):
        saved = SavedBytes(engine)
        batch = make_row(ROWS[3], engine.length)
        with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            engine.chunks[0](batch)
        engine.gradients([make_row(row, engine.length, seed) for seed, row in enumerate(ROWS)])
        return saved.total, whole_gradients(engine)


@pytest.fixture(scope="module")
def recomputed() -> dict[str, tuple[int, dict[str, Tensor]]]:
    cases = {"nothing": [], **RECOMPUTES}
    jobs = [Job(name, saved_and_gradients, 1, (overrides,)) for name, overrides in cases.items()]
    return {job.name: results[0] for job, results in zip(jobs, run_jobs(jobs), strict=True)}


@pytest.mark.ranks
@pytest.mark.parametrize("case", RECOMPUTES)
def test_recompute_keeps_gradients_and_less_memory(case: str, recomputed: dict[str, tuple[int, dict]]) -> None:
    (all_bytes, expected), (some_bytes, gradients) = recomputed["nothing"], recomputed[case]
    assert some_bytes <= LESS.get(case, 0.99) * all_bytes
    wrong = {name: error for name, value in expected.items() if (error := relative(value, gradients[name])) > 1e-6}
    assert wrong == {}


def relative(one: Tensor, many: Tensor) -> float:
    return float((one - many).norm() / one.norm().clamp(min=1e-6))


OVERLAP = "parallel.overlap_grad_reduce", "parallel.overlap_param_gather"
ALIKE = [[TEXT_ONLY] * 4, [IMAGES] * 4, [ACTIONS] * 4, ROWS, [TEXT_ONLY[:1]] * 4]
"""Steps of one kind of row: nothing of a model may wait for a kind that does not come."""


def trained(_rank: int, overrides: list[str]) -> list[Tensor]:
    """Weights after some steps of each kind of row."""
    with engine_of("optim.head.lr=0.01", "optim.language.lr=0.01", *overrides) as (engine, topology):
        for rows in ALIKE:
            batches = [make_row(row, engine.length, seed) for seed, row in enumerate(rows)]
            engine.train_step(batches[topology.dp_rank :: topology.dp_size], 1.0)
        engine.gather_weights()
        return [weight.detach().clone() for chunk in engine.chunks for weight in chunk.parameters()]


SPREAD = {
    "DP2": ["parallel.data=2"],
    "PP2+VPP2xDP2": ["parallel.data=2", "parallel.pipeline=2", "parallel.virtual=2"],
    "TP2xDP2": ["parallel.data=2", "parallel.tensor=2", "parallel.sequence=true"],
    "CP2": ["parallel.context=2"],
    "PP2+VPP2xDP2, bfloat16": [
        "parallel.data=2",
        "parallel.pipeline=2",
        "parallel.virtual=2",
        "platform.dtype=bfloat16",
    ],
}


@pytest.mark.ranks
@pytest.mark.slow
def test_overlap_leaves_no_weight_behind() -> None:
    """Several steps with both overlaps give every rank the weights that it has without, bit for bit."""
    jobs = []
    for name, layout in SPREAD.items():
        world_size = settings("global_packs=4", *layout).parallel.world_size
        for on in (True, False):
            overlap = [f"{key}={on}" for key in OVERLAP]
            jobs.append(Job(f"{name} {on}", trained, world_size, ([*layout, *overlap],)))
    results = dict(zip([job.name for job in jobs], run_jobs(jobs, timeout_s=300.0), strict=True))
    for name in SPREAD:
        for rank, (early, late) in enumerate(zip(results[f"{name} True"], results[f"{name} False"], strict=True)):
            same = [torch.equal(one, other) for one, other in zip(early, late, strict=True)]
            assert all(same), f"{name}, rank {rank}: {same.count(False)} of {len(same)} weights differ"


RATE = 2e-5
"""A bfloat16 between 1/16 and 1/4 is at least 2^-11 from the next: one step of this rate cannot reach it."""


def bfloat16_steps(_rank: int, steps: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Weights before and after steps too small for bfloat16, and the float32 ones that they are rounded from."""
    rates = [f"optim.{part}.lr={RATE}" for part in ("vision", "merger", "language", "head")]
    with engine_of("platform.dtype=bfloat16", "optim.weight_decay=0.0", "optim.eps=1e-12", *rates) as (engine, _):
        named = {name: weight for name, weight in engine.chunks[0].named_parameters() if weight.dim() > 1}
        before = {name: weight.detach().clone() for name, weight in named.items()}
        batch = make_row(ROWS[3], engine.length)
        for _ in range(steps):
            engine.train_step([batch], 1.0)
        engine.gather_weights()
        return {
            name: (before[name], weight.detach().clone(), weight.main_param.detach().view(weight.shape).clone())
            for name, weight in named.items()
            if weight.dtype is torch.bfloat16
        }


@pytest.mark.ranks
def test_updates_too_small_for_bfloat16_add_up() -> None:
    jobs = [Job(f"{steps} steps", bfloat16_steps, 1, (steps,)) for steps in (1, 30)]
    (one,), (many,) = run_jobs(jobs)
    moved: dict[int, list[Tensor]] = {1: [], 30: []}
    for steps, weights in ((1, one), (30, many)):
        for before, after, main in weights.values():
            assert main.dtype is torch.float32
            assert torch.equal(main.bfloat16(), after)
            middle = (before.abs() > 1 / 16) & (before.abs() < 1 / 4)
            moved[steps].append((before != after)[middle])
    assert not torch.cat(moved[1]).any()
    assert torch.cat(moved[30]).float().mean() > 0.5


ROUGH = 4e-3
"""Relative difference that bfloat16's other order of sums may make: its numbers are 4e-3 of themselves apart."""


def bfloat16_losses(_rank: int, overrides: list[str]) -> list[float]:
    """Both losses and the gradient's norm of a step."""
    with engine_of("platform.dtype=bfloat16", *overrides) as (engine, topology):
        batches = [make_row(row, engine.length, seed) for seed, row in enumerate(ROWS)]
        result = engine.train_step(batches[topology.dp_rank :: topology.dp_size], 1.0)
        return [float(result.losses.ce), float(result.losses.flow), result.grad_norm]


@pytest.mark.ranks
def test_layouts_of_mixed_dtypes_equal_one_rank() -> None:
    """The body is bfloat16 and the flow head float32: two kinds of buffer on one stage."""
    layouts = {"one": [], **{name: SPREAD[name] for name in ("DP2", "PP2+VPP2xDP2", "TP2xDP2", "CP2")}}
    sizes = {name: settings("global_packs=4", *layout).parallel.world_size for name, layout in layouts.items()}
    jobs = [Job(name, bfloat16_losses, sizes[name], (layout,)) for name, layout in layouts.items()]
    results = dict(zip(layouts, run_jobs(jobs), strict=True))
    (expected,) = results.pop("one")
    wrong = {
        name: ranks for name, ranks in results.items() if any(r != pytest.approx(expected, rel=ROUGH) for r in ranks)
    }
    assert wrong == {}, f"one rank has {expected}"
