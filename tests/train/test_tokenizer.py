"""Fitting an action tokenizer: what it leaves, what it goes on from, and what it refuses."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from torch import distributed

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.tokenizer import ChunkError
from flagscale_vla.config.checkpoints import checkpoint_folder, committed
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.data.actions import open_chunks
from flagscale_vla.data.store import LocalStore
from flagscale_vla.robots.embodiments import save_embodiments
from flagscale_vla.train import tokenizer as job
from flagscale_vla.train.tokenizer_fit import check_finite, draw_rows
from flagscale_vla.train.tokenizer_fit import save as save_fit
from flagscale_vla.train.tokenizer_metrics import read_fit_lines
from flagscale_vla.train.tokenizer_peers import Curve, Point
from flagscale_vla.train.tokenizer_saves import STATE, state_digest
from tests.action.targets import ARM
from tests.data.test_index import array_bytes, rewrite, with_json
from tests.samples import SAWYER, text_sample, write_shards
from tests.train.fakes import FakeTopology
from tests.train.tokenizers import frames, small_fit, write_action_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_action_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The output of a finished run."""
    output = tmp_path_factory.mktemp("fitted")
    job.run(small_fit(output, shards))
    return output


def figures(output: Path) -> dict[str, object]:
    return json.loads((output / "summary.json").read_text())


def test_it_leaves_a_tokenizer_figures_lines_and_a_page(fitted: Path, shards: Path) -> None:
    summary = figures(fitted)
    assert summary["tokens_per_chunk"] == 5.0  # sawyer has two parts, panda three, of two layers each
    assert summary["compression"] == pytest.approx(8 * 5.5 / 5.0)
    for name in ("mae_normalized", "mae_fast_same_tokens", "mae_beast_same_tokens", "mae_binning_same_tokens"):
        assert 0.0 < summary[name] < 1.0, name
    assert summary["tokens_beast_same_tokens"] == pytest.approx(5.5)
    assert 0.0 < summary["codes_used_min"] <= 1.0
    assert 0.0 < summary["token_entropy_bits"] <= np.log2(summary["num_codes"])
    assert summary["encode_decode_us"] > 0.0
    assert set(summary["per_robot"]) == {"sawyer", "panda"}
    assert {"rotation_units", "mae_fast_same_tokens", "tokens_per_chunk"} <= summary["per_robot"]["panda"].keys()
    assert "mae_beast_own_tokens" in summary["per_robot"]["panda"]
    assert [line.step for line in read_fit_lines(fitted / "metrics.jsonl")] == [2, 4, 6, 8, 10, 12]
    page = (fitted / "report.html").read_text()
    assert page.count("<img") == 6
    for words in ("At the same mean number of tokens", "position", "FAST", "BEAST", "sawyer", "panda"):
        assert words in page
    tokenizer = load_action_tokenizer(fitted / "action_tokenizer")
    chunks = open_chunks(LocalStore(shards), "heldout", 8).robots["panda"]
    decoded = tokenizer.decode("panda", tokenizer.encode("panda", chunks.values), 8)
    assert decoded.shape == chunks.values.shape


def test_a_finished_output_says_so(fitted: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (fitted / "summary.json").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        job.run(small_fit(fitted, shards))
    assert "is finished" in caplog.text
    assert (fitted / "summary.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_free_ones_are_not(fitted: Path, shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"horizon: saved with 8, asked for 6"):
        job.run(small_fit(fitted, shards, "horizon=6"))
    job.run(small_fit(fitted, shards, "threads=2", "report.every=5", "data.max_bad_share=0.5"))


@pytest.mark.parametrize("kind", ["fast", "beast", "binning"])
def test_the_others_are_fitted_and_measured_by_the_same_job(kind: str, tmp_path: Path, shards: Path) -> None:
    job.run(small_fit(tmp_path, shards, f"kind={kind}"))
    summary = figures(tmp_path)
    assert (summary["kind"], summary["codes_used_min"]) == (kind, None)
    assert f"mae_{kind}_same_tokens" not in summary
    assert load_action_tokenizer(tmp_path / "action_tokenizer").kind == kind


def copy_step(fitted: Path, output: Path, step: int) -> None:
    """An output as a run that was killed after a step has left it."""
    shutil.copytree(checkpoint_folder(fitted, step), checkpoint_folder(output, step))
    shutil.copy(fitted / "metrics.jsonl", output)


def state_bytes(output: Path) -> bytes:
    return (committed(output)[-1] / STATE).read_bytes()


def without_rates(output: Path) -> list[tuple[int, dict[str, float]]]:
    return [(line.step, line.figures) for line in read_fit_lines(output / "metrics.jsonl")]


def test_going_on_gives_the_same_codebooks_and_lines(tmp_path: Path, fitted: Path, shards: Path) -> None:
    copy_step(fitted, tmp_path, 8)
    job.run(small_fit(tmp_path, shards))
    assert state_bytes(tmp_path) == state_bytes(fitted)
    assert without_rates(tmp_path) == without_rates(fitted)


def test_a_damaged_checkpoint_is_put_aside(
    tmp_path: Path, fitted: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy_step(fitted, tmp_path, 8)
    copy_step(fitted, tmp_path, 12)
    path = checkpoint_folder(tmp_path, 12) / STATE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    job.run(small_fit(tmp_path, shards))
    assert "put aside as damaged_step_00000012, going on from the one before" in caplog.text
    assert state_bytes(tmp_path) == state_bytes(fitted)


def test_other_chunks_or_statistics_are_refused_on_going_on(tmp_path: Path, fitted: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    copy_step(fitted, output, 8)
    other = tmp_path / "other"
    write_shards(other, frames(1, 160))
    write_shards(other, frames(1000, 20), "heldout")
    with pytest.raises(ConfigError, match=r"its chunks or their statistics are not those that .*step_00000008 was"):
        job.run(small_fit(output, other))


def test_robots_left_out_are_measured_apart(tmp_path: Path, shards: Path) -> None:
    job.run(small_fit(tmp_path, shards, "robots_left_out=[sawyer]"))
    summary = figures(tmp_path)
    assert (list(summary["per_robot"]), list(summary["left_out"])) == (["panda"], ["sawyer"])
    assert summary["mae_left_out"] == summary["left_out"]["sawyer"]["mae_normalized"]
    assert summary["chunks"] == 160
    assert "Robots that were not fitted on" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            "[aloha]",
            r"robots_left_out=\['aloha'\]: no chunk is of robot 'aloha'.*would pass: robots_left_out=\[panda\]",
        ),
        ("[panda,sawyer]", "leaves no robot to fit on"),
        (
            "[panda]",
            r"\['panda'\]: no robot that is fitted on has a group of kind rotation, as 'panda'",
        ),
    ],
)
def test_robots_that_cannot_be_left_out(left: str, words: str, tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        job.run(small_fit(tmp_path, shards, f"robots_left_out={left}"))


def test_shards_that_cannot_be_fitted_on(tmp_path: Path, shards: Path) -> None:
    output, empty = tmp_path / "output", tmp_path / "empty"
    with pytest.raises(ValueError, match=r"holds no train-\*.tar"):
        fit_again(small_fit(output, empty))
    write_shards(empty, [text_sample(0, 20)])
    with pytest.raises(ValueError, match=r"holds no heldout-\*.tar"):
        fit_again(small_fit(output, empty))
    write_shards(empty, [text_sample(1, 20)], "heldout")
    with pytest.raises(ConfigError, match="none of its 1 usable samples has an action"):
        fit_again(small_fit(output, empty))
    with pytest.raises(ConfigError, match=r"codec.position.codes=1024: there are 320 chunks .* too few. This"):
        fit_again(small_fit(output, shards, "codec.position.codes=1024"))
    with pytest.raises(ValueError, match="horizon=13 needs at least as many"):
        fit_again(small_fit(output, shards, "horizon=13"))


def fit_again(run: TokenizerRun) -> None:
    """Run in a process whose last run ended in an error."""
    if distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()
    job.run(run)


def test_bad_chunks_are_counted_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "shards"
    (path,) = write_shards(folder, frames(0, 150, (SAWYER,)), max_bytes=10**8)
    write_shards(folder, frames(1000, 10, (SAWYER,)), "heldout")

    def change(contents: dict[str, bytes]) -> None:
        contents["sawyer-00003.action.npy"] = array_bytes(np.full((12, 4), np.nan, np.float32))
        with_json(contents, "sawyer-00004.json", robot="unheard")

    rewrite(path, change)
    with pytest.raises(ValueError, match=r"2 of 150 samples indexed are bad, past data.max_bad_share=0.01: .*NaN"):
        job.run(small_fit(tmp_path / "strict", folder, "data.max_bad_share=0.01"))
    with pytest.raises(
        ValueError, match=r"2 of 150 samples indexed of train-000000\.tar are bad, past data.max_bad_sh"
    ):
        fit_again(small_fit(tmp_path / "strict", folder, "data.max_bad_share=0.02", "data.max_bad_shard_share=0.01"))
    fit_again(small_fit(tmp_path / "output", folder, "data.max_bad_share=0.02"))
    summary = figures(tmp_path / "output")
    assert (summary["chunks"], summary["quarantined"], summary["invalid"]) == (148, 2, 2)
    assert "2 samples quarantined, 2 of them with invalid chunks" in caplog.text
    assert "robot 'unheard' is not in embodiments.json" in (tmp_path / "output/quarantine/train.jsonl").read_text()
    assert "2 samples were quarantined" in (tmp_path / "output/report.html").read_text()


def test_chunks_that_begin_at_the_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, output = tmp_path / "shards", tmp_path / "output"
    write_shards(folder, frames(0, 160, (ARM,)))
    write_shards(folder, frames(1000, 20, (ARM,)), "heldout")
    save_embodiments(folder, (ARM,))
    with caplog.at_level(logging.INFO):
        job.run(small_fit(output, folder, "codec.pin_start=true"))
    assert "arm: 160 chunks" in caplog.text
    assert "begins at the state: joints" in caplog.text
    assert 0.0 < figures(output)["mae_normalized"] < 1.0
    tokenizer = load_action_tokenizer(output / "action_tokenizer")
    chunks = open_chunks(LocalStore(folder), "heldout", 8).robots["arm"]
    starts = np.clip(chunks.starts, -0.5, 0.5)
    decoded = tokenizer.decode("arm", tokenizer.encode("arm", chunks.values, starts), 8, starts)
    np.testing.assert_array_equal(decoded[:, 0, :6], starts[:, 1:])
    with pytest.raises(ChunkError, match="robot 'arm': its chunks begin at its state"):
        tokenizer.encode("arm", chunks.values)


def test_steps_cannot_begin_at_the_state(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"codec.pin_start=True: no robot's state has the names .*pin_start=False"):
        job.run(small_fit(tmp_path, shards, "codec.pin_start=true"))


def test_an_error_between_two_settings_is_read_off_their_curve() -> None:
    points = tuple(Point(label="", tokens=tokens, mae=mae) for tokens, mae in ((20.0, 0.01), (10.0, 0.04)))
    curve = Curve(name="FAST", points=points, by_robot={"panda": points})
    assert curve.error_at("panda", 15.0) == pytest.approx(0.02)
    assert curve.error_at("panda", 10.0) == pytest.approx(0.04)
    assert curve.error_at("panda", 9.0) is None


def test_the_chunks_of_a_step_are_a_function_of_seed_and_step() -> None:
    rows = draw_rows(0, 3, 64, 1000)
    np.testing.assert_array_equal(rows, draw_rows(0, 3, 64, 1000))
    assert 0 <= rows.min() <= rows.max() < 1000
    for other in (draw_rows(0, 4, 64, 1000), draw_rows(1, 3, 64, 1000)):
        assert (other != rows).any()


class Disagreeing(FakeTopology):
    """A rank beside another whose state is a different one."""

    world_size = 2

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        return [2 * value + 1 for value in values]


class OneTensor:
    """A fitter's state."""

    def state(self) -> dict[str, torch.Tensor]:
        return {"books": torch.ones(2)}


def test_ranks_that_no_longer_agree_save_nothing(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ValueError, match="step 3: the codec is no longer the same in every process"):
        save_fit(small_fit(tmp_path, shards), 3, OneTensor(), "digest", Disagreeing())  # type: ignore[arg-type]
    assert committed(tmp_path) == []


def test_a_state_is_known_by_names_shapes_and_bits() -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(3)}
    same = {"b": torch.ones(3), "a": torch.zeros(2)}
    assert state_digest(state) == state_digest(same)
    for other in (
        {**state, "a": -torch.zeros(2)},
        {**state, "a": torch.zeros(1, 2)},
        {"c": state["a"], "b": state["b"]},
    ):
        assert state_digest(other) != state_digest(state)


def test_a_loss_that_is_no_number_stops_the_fit() -> None:
    with pytest.raises(ValueError, match=r"step 7: error is nan. Nothing of this step was saved; lower codec.lr"):
        check_finite({"error": float("nan"), "commitment": 0.1}, 7)
