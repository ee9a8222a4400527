"""Recording questions: beside the episodes, without a trace in them, whole or not at all; and training on them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from megatron.core import parallel_state
from torch import distributed

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.data.prepare import open_train_data
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.shards import shard_path
from flagscale_vla.records import Action
from flagscale_vla.robots.embodiments import load_embodiments
from flagscale_vla.sim import blocks, record
from flagscale_vla.sim.questions.pictures import read_samples
from flagscale_vla.sim.questions.wording import Kind
from flagscale_vla.sim.workers import close_world
from flagscale_vla.train import pretrain
from flagscale_vla.train.metrics import read_lines
from tests.sim.extras import needs_sim
from tests.sim.test_record import SETTINGS, digests
from tests.train.settings import small_run

pytestmark = needs_sim

ASKED = replace(SETTINGS, tasks=["metaworld/drawer-close"], image_pixels=112, episodes=3, questions=12)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    record_here(replace(ASKED, output=str(folder)))
    close_world()
    return folder


@pytest.fixture(autouse=True)
def here():
    """Blocks recorded in this process."""
    yield
    close_world()
    if distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


def record_here(settings) -> None:
    for block in blocks.plan_blocks(settings, settings.tasks):
        if not blocks.is_recorded(Path(settings.output), block):
            blocks.record_block((settings, block))
    record.conclude(settings, blocks.plan_blocks(settings, settings.tasks), 1.0)


def test_episodes_are_the_same_as_without_questions(recorded, tmp_path):
    settings = replace(ASKED, output=str(tmp_path), questions=0)
    for block in blocks.plan_blocks(settings, settings.tasks):
        blocks.record_block((settings, block))
    assert digests(tmp_path) == digests(recorded)
    assert not (tmp_path / "questions").exists()


def test_a_block_cut_off_between_its_shards_ends_the_same(tmp_path):
    settings = replace(ASKED, output=str(tmp_path), episodes=2, heldout_episodes=0, questions=6)
    (block,) = blocks.plan_blocks(settings, settings.tasks)
    blocks.record_block((settings, block))
    wanted = digests(tmp_path), digests(tmp_path / "questions")
    assert wanted[1].keys() == {"train-000000.tar"}
    shard_path(tmp_path, "train", 0).unlink()
    assert not blocks.is_recorded(tmp_path, block)
    blocks.record_block((settings, block))
    assert (digests(tmp_path), digests(tmp_path / "questions")) == wanted


def test_folder_tells_counts_refusals_and_examples(recorded):
    summary = json.loads((recorded / "summary.json").read_text())
    refused = [json.loads(line) for line in (recorded / "questions" / "refused.jsonl").read_text().splitlines()]
    assert summary["questions"] + summary["questions_refused"] == 12 * 4
    assert summary["questions_refused"] == len(refused)
    assert all({"key", "kind", "reason"} == entry.keys() for entry in refused)
    kinds = [header["kind"] for header in headers(recorded)]
    assert len(kinds) == summary["questions"]
    assert {kind.value: kinds.count(kind.value) for kind in Kind} == summary["questions_per_kind"]
    page = (recorded / "questions" / "report.html").read_text()
    assert page.count("data:image/png") >= len(set(kinds))
    assert "questions/report.html" in (recorded / "report.html").read_text()
    assert load_embodiments(recorded / "questions").keys() == {"metaworld_sawyer"}


def headers(folder: Path):
    shards = sorted((folder / "questions").glob("*.tar"))
    return [header for shard in shards for header, _ in read_samples(shard)]


def test_settings_that_leave_nothing_to_ask_are_refused():
    with pytest.raises(ConfigError, match=r"questions=12: image_pixels=0 gives nothing to ask about"):
        replace(ASKED, image_pixels=0)
    with pytest.raises(ConfigError, match=r"question_steps=9: must be at most horizon=8"):
        replace(ASKED, question_steps=9)
    replace(ASKED, questions=0, question_steps=9)


def settings_for(output: Path, sources: dict[str, Path]):
    mixture = ",".join(f"{name}:{{shards:{folder},weight:1.0}}" for name, folder in sources.items())
    return small_run(
        output,
        f"+data.mixture={{{mixture}}}",
        "data.shards=''",
        "data.pack_length=1024",
        "data.image.max_pixels=12544",
        "checkpoint.every=100",
        "steps=3",
    )


def test_questions_and_episodes_train_together_with_both_losses(recorded, tmp_path):
    pretrain.run(settings_for(tmp_path, {"asked": recorded / "questions", "episodes": recorded}))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert len(lines) == 3
    assert all(math.isfinite(line.text_loss) and math.isfinite(line.flow_loss) for line in lines)
    assert lines[-1].quarantined == 0
    assert all(part["samples"] > 0 for part in lines[-1].sources.values()), lines[-1].sources
    assert lines[-1].sources.keys() == {"asked", "episodes"}


def test_text_after_actions_is_learnt_where_the_actions_are_context(recorded, tmp_path):
    run = settings_for(tmp_path, {"asked": recorded / "questions"})
    recipe, (source,) = open_train_data(run.data, run.action, width=run.model.flow.width, vocab=512)
    assert len(source.index) == len([header for header in headers(recorded) if header["episode"] < 3])
    assert not source.index.faults
    raws = [read_sample(source.index.store, source.index.place(item)) for item in range(len(source.index))]
    interleaved = next(raw for raw in raws if any(isinstance(part, Action) for part in raw.segments))
    seen = set()
    for epoch in range(12):
        sample = recipe.sample(interleaved, seed=0, epoch=epoch, augment=False)
        last = int(sample.action_slots.max())
        learnt_after = int((sample.labels[last + 2 :] >= 0).sum())
        noised = int(sample.action_valid.any(dim=(1, 2)).sum())
        seen.add((noised, learnt_after > 2))
    # Either a chunk is denoised and ends the sequence, or all are clean and the answers behind them are learnt.
    assert (0, True) in seen
    assert (1, False) in seen
    assert (1, True) not in seen
    row = recipe.pack([recipe.sample(raw, seed=0, epoch=0, augment=True) for raw in raws[:3]], 1024)
    assert row.num_labels > 0


def test_what_has_answers_is_not_moved_by_augmentation(recorded, tmp_path):
    run = settings_for(tmp_path, {"asked": recorded / "questions"})
    assert run.data.image.augment.shift > 0
    recipe, (source,) = open_train_data(run.data, run.action, width=run.model.flow.width, vocab=512)
    raws = [read_sample(source.index.store, source.index.place(item)) for item in range(8)]
    for raw in raws:
        plain, changed = (recipe.sample(raw, seed=0, epoch=0, augment=augment) for augment in (False, True))
        assert torch.equal(plain.pixels, changed.pixels)
