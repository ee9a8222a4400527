"""Every way to compute agrees with the CPU's in float32 on forward, losses and gradients, at Qwen2.5-VL-3B's widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flagscale_vla.mcore import attention
from flagscale_vla.mcore.engine import Engine
from flagscale_vla.mcore.layers import has_transformer_engine, plain_layers
from flagscale_vla.mcore.platform import Platform, choose_platform, count_gpus
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.train.objective import objective
from tests.helpers import run_ranks
from tests.model.rows import ACTIONS, IMAGES, TEXT_ONLY, make_row
from tests.settings import load_training

LOSS_BOUND = 0.01
GRADIENT_BOUND = 0.05
"""Of a tensor's gradient, relative by norm. On a CPU bfloat16, which keeps eight bits, differs by 0.021 at most."""
NEGLIGIBLE = 1e-3
"""Share of the whole gradient's norm under which a tensor's own is all rounding, as that of a key's bias."""

MINUTES = 600.0
"""Seconds that a loaded machine may take."""

WIDTHS = [
    "model.language.layers=1",
    "model.language.vocab=1024",
    "model.vision.layers=2",
    "model.vision.full_attention_layers=[1]",
    "model.flow.width=8",
    "data.shards=unused",
    "data.tokenizer=unused",
    "data.image.min_pixels=784",
    "data.image.max_pixels=7056",
    "data.pack_length=256",
    "parallel.data=1",
    "parallel.hosts=1",
    "global_packs=1",
]
"""A language layer and a vision layer of each kind, as wide as Qwen2.5-VL-3B's; vocabulary and row are smaller."""


@dataclass(frozen=True)
class Result:
    """What one step computes."""

    text_loss: float
    flow_loss: float
    errors: dict[str, float]
    """of every gradient against the CPU's in float32"""


def as_chosen(platform: Platform) -> Platform:
    return platform


def without_transformer_engine(platform: Platform) -> Platform:
    return replace(platform, layers=plain_layers())


def document_by_document(platform: Platform) -> Platform:
    attention.__dict__["has_kernel"] = lambda query: False
    return without_transformer_engine(platform)


def step(rank: int, overrides: list[str], change: Callable[[Platform], Platform], exact: str) -> Result:
    """Losses and gradients of a row of documents with and without pictures and actions.

    Where there is no file `exact` yet, this step's own gradients become what others are compared with.
    """
    run = load_training("train_3b_action", *WIDTHS, *overrides)
    platform = change(choose_platform(run.platform))
    topology = Topology.start(run.parallel, platform)
    build_chunk = partial(VisionLanguageAction, run.model, run.parallel, platform, topology)
    engine = Engine(build_chunk, objective, run, topology, platform)
    sums = engine.gradients([make_row([*TEXT_ONLY, *IMAGES, *ACTIONS], run.data.pack_length)])
    gradients = {name: weight.main_grad for name, weight in engine.chunks[0].named_parameters()}
    if not Path(exact).exists():
        save_file({name: gradient.contiguous() for name, gradient in gradients.items()}, exact)
    return Result(
        text_loss=float(sums.ce) / sums.num_labels,
        flow_loss=float(sums.flow) / sums.num_action_values,
        errors=compare(gradients, exact),
    )


def compare(gradients: dict[str, Tensor], exact: str) -> dict[str, float]:
    """Relative difference of every gradient from the one in the file."""
    with safe_open(exact, "pt") as expected:
        assert gradients.keys() == set(expected.keys())
        norms = {name: float(expected.get_tensor(name).norm()) for name in gradients}
        floor = NEGLIGIBLE * math.hypot(*norms.values())
        apart = {
            name: float((gradient.cpu() - expected.get_tensor(name)).norm()) for name, gradient in gradients.items()
        }
    return {name: apart[name] / max(norms[name], floor) for name in gradients}


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")]
needs_te = [*needs_gpu, pytest.mark.skipif(not has_transformer_engine(), reason="needs Transformer Engine")]
PATHS = [
    pytest.param(["platform.device=cpu", "platform.dtype=bfloat16"], as_chosen, id="CPU, bfloat16"),
    pytest.param(["platform.device=gpu"], as_chosen, id="Transformer Engine", marks=needs_te),
    pytest.param(["platform.device=gpu"], without_transformer_engine, id="torch's varlen", marks=needs_gpu),
    pytest.param(["platform.device=gpu"], document_by_document, id="document by document", marks=needs_gpu),
    pytest.param(["platform.device=gpu", "platform.dtype=float32"], as_chosen, id="GPU, float32", marks=needs_gpu),
]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    file = str(tmp_path_factory.mktemp("exact") / "gradients.safetensors")
    overrides = ["platform.device=cpu", "platform.dtype=float32"]
    return run_ranks(step, 1, overrides, as_chosen, file, timeout_s=MINUTES)[0], file


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "change"), PATHS)
def test_a_path_agrees_with_the_cpu_in_float32(
    overrides: list[str], change: Callable[[Platform], Platform], exact: tuple[Result, str]
) -> None:
    expected, file = exact
    result: Result = run_ranks(step, 1, overrides, change, file, timeout_s=MINUTES)[0]
    assert result.text_loss == pytest.approx(expected.text_loss, rel=LOSS_BOUND)
    assert result.flow_loss == pytest.approx(expected.flow_loss, rel=LOSS_BOUND)
    assert {name: error for name, error in result.errors.items() if error > GRADIENT_BOUND} == {}
