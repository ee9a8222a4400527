"""Learning: better with every step, the same however a batch is shared, and to the bit after a stop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from flagscale_vla.action.fitter import Fitter
from flagscale_vla.action.tokenizer import ChunkError
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.tokenizer import KindConfig
from tests.action.chunks import HORIZON, ROBOTS, make_chunks
from tests.action.codec import make_fitter, small
from tests.helpers import run_ranks

Batch = tuple[dict[str, Tensor], dict[str, Tensor]]


def make_batch(seed: int, count: int = 24) -> Batch:
    """`count` chunks of every robot, with the ends of some past an episode's."""
    chunks = {robot: torch.from_numpy(make_chunks(robot, count, seed)) for robot in ROBOTS}
    lengths = torch.randint(1, 2 * HORIZON, (count, 1), generator=torch.Generator().manual_seed(seed))
    return chunks, {robot: torch.arange(HORIZON) < lengths for robot in ROBOTS}


def share(batch: Batch, rank: int, ranks: int) -> Batch:
    chunks, valid = batch
    return {k: v[rank::ranks] for k, v in chunks.items()}, {k: v[rank::ranks] for k, v in valid.items()}


def digest(state: Mapping[str, Tensor]) -> str:
    return sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def fit(fitter: Fitter, steps: range, rank: int = 0, ranks: int = 1) -> list[dict[str, float]]:
    return [fitter.step(*share(make_batch(step + 1), rank, ranks), step) for step in steps]


def test_error_falls() -> None:
    fitter = make_fitter(small())
    fitter.begin(*make_batch(0, 200))
    figures = fit(fitter, range(60))
    first, last = (sum(f["error"] for f in part) / 5 for part in (figures[:5], figures[-5:]))
    assert last < 0.97 * first
    assert figures[-1]["codes_used"] > 0.8


@pytest.mark.parametrize(
    "changes", [{"rotation_trick": True}, {"geodesic": 0.5}, {"drift": 1.0}, {"layer_dropout": 1.0}]
)
def test_options_learn_too(changes: dict[str, object]) -> None:
    fitter = make_fitter(small(**changes))
    fitter.begin(*make_batch(0, 200))
    figures = fit(fitter, range(40))
    assert figures[-1]["error"] < figures[0]["error"]


def test_a_stop_changes_no_bit() -> None:
    straight = make_fitter(small())
    straight.begin(*make_batch(0, 100))
    fit(straight, range(6))
    state = {name: tensor.clone() for name, tensor in straight.state().items()}
    fit(straight, range(6, 12))
    resumed = make_fitter(small())
    resumed.load_state(state)
    fit(resumed, range(6, 12))
    assert digest(resumed.state()) == digest(straight.state())


def test_state_of_another_codec() -> None:
    state = make_fitter(small()).state()
    state["gripper.books"] = state["gripper.books"][:, :4]
    with pytest.raises(
        ValueError, match=r"gripper.books has shape \[1, 4, 4\] in this state; the codec has \[1, 8, 4\]"
    ):
        make_fitter(small()).load_state(state)


def test_a_tokenizer_does_not_change_with_later_steps() -> None:
    fitter = make_fitter(small())
    fitter.begin(*make_batch(0, 100))
    tokenizer = fitter.tokenizer()
    values = make_chunks("panda", 5, 9)
    before = tokenizer.decode("panda", tokenizer.encode("panda", values), HORIZON)
    fit(fitter, range(3))
    after = tokenizer.decode("panda", tokenizer.encode("panda", values), HORIZON)
    assert before.tobytes() == after.tobytes()


def fit_on_ranks(rank: int, ranks: int) -> tuple[str, dict[str, Tensor], float]:
    dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=ranks)
    assert os.environ["WORLD_SIZE"] == str(ranks)
    fitter = make_fitter(small(revive_every=2, dead_share=0.5), dist.all_reduce)
    fitter.begin(*make_batch(0, 100))
    figures = fit(fitter, range(8), rank, ranks)
    return digest(fitter.state()), fitter.state(), figures[-1]["error"]


@pytest.mark.ranks
def test_ranks_agree_with_each_other_and_with_one() -> None:
    (first, state, error), (second, _, _) = run_ranks(fit_on_ranks, 2, 2)
    assert first == second
    alone = make_fitter(small(revive_every=2, dead_share=0.5))
    alone.begin(*make_batch(0, 100))
    figures = fit(alone, range(8))
    assert error == pytest.approx(figures[-1]["error"], rel=1e-3)
    for name, tensor in alone.state().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-3, msg=name)


def test_a_rank_may_hold_no_chunk() -> None:
    fitter = make_fitter(small())
    fitter.begin(*make_batch(0, 100))
    figures = fitter.step({}, {}, 0)
    assert figures["error"] == 0.0
    assert all(torch.isfinite(tensor).all() for tensor in fitter.state().values())


def test_begin_needs_chunks_of_every_kind() -> None:
    chunks, valid = make_batch(0, 20)
    with pytest.raises(ValueError, match="no chunk with a group of kind joints"):
        make_fitter(small()).begin({"panda": chunks["panda"]}, {"panda": valid["panda"]})


def test_chunks_that_are_not_the_robots() -> None:
    fitter = make_fitter(small())
    chunks, valid = make_batch(0, 20)
    with pytest.raises(ChunkError, match="robot='ufo' was not fitted"):
        fitter.step({"ufo": chunks["panda"]}, {"ufo": valid["panda"]}, 0)
    chunks["panda"][3, 2, 1] = float("nan")
    with pytest.raises(ChunkError, match="dy=nan at step 2: not finite"):
        fitter.step(chunks, valid, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": 1.0}, "codec.decay=1.0"),
        ({"dead_share": 2.0}, "codec.dead_share=2.0"),
        ({"lr": 0.0}, "codec.lr=0.0"),
        ({"gripper": KindConfig(points=4, degree=4, latent=2, hidden=2, layers=1, codes=2)}, "codec.gripper.degree=4"),
        ({"gripper": KindConfig(points=4, degree=0, latent=2, hidden=2, layers=1, codes=1)}, "codec.gripper.codes=1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)
