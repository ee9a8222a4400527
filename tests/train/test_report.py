"""What a run leaves behind, from made-up steps: lines, TensorBoard, W&B, summary and page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flagscale_vla.config.runs import TrainRun
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.plan import Given
from flagscale_vla.data.prepare import open_train_data
from flagscale_vla.data.read import read_sample
from flagscale_vla.records import LossSums, Progress
from flagscale_vla.train.metrics import StepRecord, read_lines
from flagscale_vla.train.report import Report, is_reported
from tests.samples import robot_sample, text_sample, write_shards
from tests.train.settings import small_run


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [text_sample(0, 12), robot_sample(1)])
    run = small_run(folder / "out", f"data.shards={folder}")
    recipe, sources = open_train_data(run.data, run.action, width=8, vocab=512)
    return Feed(sources=sources, recipe=recipe, order=run.data, pack_length=512, seed=0, augment=False)


def record(step: int) -> StepRecord:
    return StepRecord(
        progress=Progress(step=step, packs=step, samples=3 * step, tokens=256 * step),
        losses=LossSums(ce=torch.tensor(8.0 / step), flow=torch.tensor(6.0), num_labels=4, num_action_values=2),
        lr_share=0.5,
        grad_norm=1.0,
        samples=3,
        tokens=256,
        quarantined=0,
        seconds=0.5,
        given={"robots": Given(samples=2 * step, tokens=200 * step, passes=0.5 * step)},
    )


def tell(run: TrainRun, feed: Feed, first: int, last: int, *, writes: bool = True) -> Report:
    """A report of steps `first` to `last`, ended as a run ends it."""
    with Report(run, feed, writes=writes, device="a test", progress=Progress(step=first - 1)) as report:
        for step in range(first, last + 1):
            report.step(record(step))
        report.close_window()
        report.finish(Path(run.output) / "checkpoints" / f"step_{last:08d}", 0)
    return report


def test_a_line_every_few_steps_and_at_the_last(tmp_path: Path, feed: Feed) -> None:
    tell(small_run(tmp_path, "steps=5", "report.every=2"), feed, 1, 5)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line.step, line.steps) for line in lines] == [(2, 2), (4, 2), (5, 1)]
    assert lines[0].useful_tokens_per_second == 512.0
    assert lines[0].padding_share == 0.5
    assert lines[0].flow_loss == 3.0
    assert lines[1].sources == {"robots": {"samples": 8, "tokens": 800, "passes": 2.0}}


def test_going_on_drops_what_is_made_again(tmp_path: Path, feed: Feed) -> None:
    run = small_run(tmp_path, "steps=6", "report.tensorboard=true")
    tell(run, feed, 1, 5)
    tell(run, feed, 4, 6)
    assert [line.step for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("text_loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in events.Scalars("sources/robots/samples")] == [2, 4, 6, 8, 10, 12]


def test_summary(tmp_path: Path, feed: Feed) -> None:
    run = small_run(tmp_path, "steps=3")
    report = tell(run, feed, 1, 3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["samples"] == 9
    assert summary["tokens"] == 768
    assert summary["useful_tokens_per_second"] == 512.0
    assert summary["padding_share"] == 0.5
    assert summary["text_loss"] == pytest.approx(2.0 / 3.0)
    assert summary["flow_loss"] == 3.0
    assert summary["parameters"] > 100_000
    assert summary["device"] == "a test"
    assert summary["checkpoint"].endswith("step_00000003")
    assert {"torch_version", "megatron_core_version", "git_hash"} <= summary.keys()
    assert not any(isinstance(value, dict | list) for value in summary.values())
    assert is_reported(tmp_path, report.progress)
    assert not is_reported(tmp_path, Progress(step=4))


def test_page_shows_curves_settings_and_what_the_model_saw(tmp_path: Path, feed: Feed) -> None:
    run = small_run(tmp_path, "steps=2", "report.samples=2")
    raws = [read_sample(feed.sources[0].index.store, feed.sources[0].index.place(number)) for number in range(2)]
    samples = [feed.recipe.sample(raw, seed=0, epoch=0, augment=False) for raw in raws]
    batch = feed.recipe.pack(samples, 512)
    with Report(run, feed, writes=True, device="a test", progress=Progress()) as report:
        report.show([batch])
        report.step(record(1))
        report.close_window()
        report.finish(tmp_path, 0)
    page = (tmp_path / "report.html").read_text()
    assert "Stopped at step 1 of 2" in page
    assert page.count("data:image/png;base64,") == 4
    assert "train-000000.tar/robot-00001" in page
    assert "&lt;|image_pad|&gt;×4" in page
    assert "pack_length: 512" in page
    assert "<td>robots</td><td>2</td><td>200</td><td>0.500</td>" in page


def test_a_process_that_does_not_write_leaves_nothing(tmp_path: Path, feed: Feed) -> None:
    tell(small_run(tmp_path, "steps=2", "report.tensorboard=true"), feed, 1, 2, writes=False)
    assert list(tmp_path.iterdir()) == []


def test_wandb_offline(tmp_path: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = small_run(tmp_path, "steps=2", "report.wandb=true")
    tell(run, feed, 1, 1)
    identity = (tmp_path / "wandb_id").read_text()
    tell(run, feed, 2, 2)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs
    assert all(folder.name.endswith(identity) for folder in runs)
    assert all(list(folder.glob("*.wandb")) for folder in runs)
