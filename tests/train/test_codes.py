"""Runs that learn codes: they write the right ones, go on with no other codes, and start from a smaller vocabulary."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from torch import distributed

from flagscale_vla.config.checkpoints import RECIPE, checkpoint_folder
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.parallel import Device, Dtype, Fp8, MatmulPrecision, PlatformConfig
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.policy.client import open_policy
from flagscale_vla.records import Action, RawSample
from flagscale_vla.train.metrics import read_lines
from flagscale_vla.train.page import read_samples
from flagscale_vla.train.pretrain import run
from tests.data.test_recipe import observe
from tests.samples import PANDA, binning, robot_sample, text_sample, write_shards
from tests.train.settings import small_run
from tests.train.weights import assert_same_weights, load_tensors

PLATFORM = PlatformConfig(device=Device.cpu, dtype=Dtype.auto, fp8=Fp8.none, matmul=MatmulPrecision.highest, threads=1)
RAWS = (robot_sample(0), robot_sample(1, PANDA), robot_sample(2), text_sample(3, 12))
STEADY = ("optim.warmup_steps=0", "optim.final_share=1.0", "checkpoint.every=1", "checkpoint.keep=5")
FAST = [f"optim.{part}.lr=3e-3" for part in ("vision", "merger", "language", "head")]
STILL = [f"optim.{part}.lr=1e-12" for part in ("vision", "merger", "language", "head")]
EMBEDDING = "language.embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, RAWS)
    return f"data.shards={folder}"


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    binning().save(folder)
    return folder


def leave_group() -> None:
    """A run that ends in an error leaves its process group to the next one."""
    if distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    leave_group()


def coded(answer: str, codec: Path) -> tuple[str, ...]:
    return (f"action={answer}", f"action.tokenizer={codec}", "model.language.vocab=640", "optim.loss.text=1.0")


def chunk_of(raw: RawSample) -> Action:
    action = raw.segments[-1]
    assert isinstance(action, Action)
    return action


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["codes", "both"])
def test_a_model_that_has_seen_few_samples_writes_their_codes(
    tmp_path: Path, shards: str, codec: Path, answer: str
) -> None:
    steps = ("steps=120", "optim.warmup_steps=5", "checkpoint.every=120", "data.image.augment.most=0")
    # Of two samples a robot the spread is no measure: the flow loss would take most of the clipped gradient.
    run(small_run(tmp_path, shards, *coded(answer, codec), *FAST, *steps, "optim.loss.flow=0.001"))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert lines[-1].text_loss < 0.05
    assert (lines[-1].flow_loss is None) == (answer == "codes")
    policy = open_policy(tmp_path, platform=PLATFORM, denoise_steps=4, temperature=0.0)
    answers = policy.infer([observe(raw) for raw in RAWS[:3]], seed=0)
    for raw, found in zip(RAWS, answers, strict=False):
        action = chunk_of(raw)
        (expected,) = binning().encode(action.robot, action.values[None, :8])
        assert found.codes is not None
        np.testing.assert_array_equal(found.codes, expected)
        if answer == "codes":
            np.testing.assert_array_equal(found.values, binning().decode(action.robot, [expected], 8)[0])
        assert found.values.shape == (8, action.values.shape[1])


def test_codes_are_shown_as_numbers_with_the_chunk_that_they_are(tmp_path: Path, shards: str, codec: Path) -> None:
    run(small_run(tmp_path, shards, *coded("codes", codec), "steps=1", "report.samples=4"))
    shown = {sample["key"].split("/")[1]: sample for sample in read_samples(tmp_path / "first_step.json")}  # type: ignore[attr-defined]
    for raw in RAWS[:3]:
        action = chunk_of(raw)
        (codes,) = binning().encode(action.robot, action.values[None, :8])
        spans = {span["text"]: span["supervised"] for span in shown[raw.key]["spans"]}  # type: ignore[attr-defined]
        assert spans[f"[{len(codes)} codes: {' '.join(map(str, codes))}]"]
        assert len(shown[raw.key]["chunks"]) == 1  # type: ignore[arg-type]


def test_a_run_goes_on_where_its_codes_lie_elsewhere_and_not_with_others(
    tmp_path: Path, shards: str, codec: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(small_run(whole, shards, *coded("both", codec), *STEADY, "steps=2"))
    run(small_run(halves, shards, *coded("both", codec), *STEADY, "steps=1"))
    saved = Recipe.load(checkpoint_folder(halves, 1) / RECIPE)
    assert saved.codes is not None
    other = tmp_path / "other"
    binning(15).save(other)
    with pytest.raises(ConfigError, match=r"action\.tokenizer=.*other: is not the one .* action\.tokenizer=.*halves"):
        run(small_run(halves, shards, *coded("both", other), *STEADY, "steps=2"))
    leave_group()
    shutil.copytree(codec, tmp_path / "moved")
    run(small_run(halves, shards, *coded("both", tmp_path / "moved"), *STEADY, "steps=2"))
    assert_same_weights(checkpoint_folder(whole, 2), checkpoint_folder(halves, 2))


def test_an_embedding_grows_where_a_run_starts_from_words_alone(
    tmp_path: Path, shards: str, codec: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = tmp_path / "words"
    run(small_run(words, shards, *STEADY, "steps=1"))
    init = checkpoint_folder(words, 1)
    tokenizer = f"data.tokenizer={init / RECIPE / 'tokenizer.json'}"
    grown = small_run(
        tmp_path / "codes", shards, *coded("codes", codec), *STEADY, *STILL, "steps=1", f"init={init}", tokenizer
    )
    run(grown)
    before, after = load_tensors(init), load_tensors(checkpoint_folder(tmp_path / "codes", 1))
    assert after[EMBEDDING].shape == (640, 64)
    torch.testing.assert_close(after[EMBEDDING][:512], before[EMBEDDING], atol=1e-6, rtol=0)
    assert 0.015 < after[EMBEDDING][512:].std() < 0.025
    assert f"{EMBEDDING} has 512 rows there; the 128 behind them are drawn anew" in caplog.text
    for name in before:
        if not name.startswith("exp_") and name != EMBEDDING and "num_updates" not in name:
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match=r"language\.vocab: saved with 512, asked for 640"):
        run(small_run(tmp_path / "flow", shards, "model.language.vocab=640", "steps=1", f"init={init}", tokenizer))
    leave_group()
    with pytest.raises(ConfigError, match=r"data\.tokenizer=fit: init=.* was trained with another one"):
        run(small_run(tmp_path / "fit", shards, *coded("codes", codec), "data.system_prompt=hi", f"init={init}"))


def test_another_tokenizers_codes_are_a_start_that_is_told(
    tmp_path: Path, shards: str, codec: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(small_run(tmp_path / "first", shards, *coded("codes", codec), *STEADY, "steps=1"))
    binning(16).save(tmp_path / "same")
    tokenizer = f"data.tokenizer={checkpoint_folder(tmp_path / 'first', 1) / RECIPE / 'tokenizer.json'}"
    start = (*STEADY, "steps=1", f"init={tmp_path / 'first'}", tokenizer)
    run(small_run(tmp_path / "next", shards, *coded("codes", tmp_path / "same"), *start))
    assert "another action tokenizer's codes" not in caplog.text
    binning(20).save(tmp_path / "more")
    run(small_run(tmp_path / "other", shards, *coded("codes", tmp_path / "more"), *start))
    assert "another action tokenizer's codes" in caplog.text
