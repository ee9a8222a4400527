"""The job that builds an index: its files and figures, what it verifies, and the list it leaves for http."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flagscale_vla.config.index_run import IndexRun
from flagscale_vla.data.index import open_index
from flagscale_vla.data.indexing import run
from flagscale_vla.data.prepare import open_recipe
from flagscale_vla.data.store import open_store
from tests.data.servers import served
from tests.data.test_index import rewrite
from tests.samples import PANDA, robot_sample, text_sample, write_shards
from tests.settings import load

RAWS = [*(robot_sample(seed) for seed in range(12)), robot_sample(20, PANDA), text_sample(0, 40)]


def settings(folder: Path, *overrides: str) -> IndexRun:
    job = load(
        "index",
        f"data.shards={folder}",
        f"output={folder / 'out'}",
        f"data.cache.folder={folder / 'cache'}",
        "action.horizon=8",
        "processes=1",
        *overrides,
    )
    assert isinstance(job, IndexRun)
    return job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = write_shards(tmp_path, RAWS, max_bytes=40_000)
    rewrite(shards[0], lambda contents: contents.pop("robot-00001.state.npy") and None)
    write_shards(tmp_path, [robot_sample(seed) for seed in range(50, 53)], "heldout")
    return tmp_path


def test_it_leaves_figures_faults_and_a_page(folder: Path) -> None:
    run(settings(folder))
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["train"]["samples"] == len(RAWS) - 1
    assert summary["train"]["robots"] == {"(none)": 1, "panda": 1, "sawyer": 11}
    assert summary["train"]["faults"] == 1
    assert summary["heldout"]["samples"] == 3
    (line,) = (folder / "out" / "faults.jsonl").read_text().splitlines()
    assert json.loads(line)["member"] == "robot-00001.state.npy"
    page = (folder / "out" / "report.html").read_text()
    assert "robot-00001.state.npy" in page
    assert "is missing" in page
    assert "data:image/png;base64," in page


def test_training_with_the_same_settings_reads_no_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = settings(folder)
    run(job)
    store = open_store(job.data.shards, job.data.cache)
    monkeypatch.setattr("flagscale_vla.data.index.scan_shard", lambda *_: pytest.fail("read again"))
    recipe = open_recipe({"": store}, job.data, job.action, width=job.width, vocab=job.vocab)
    assert len(open_index(store, "train", recipe)) == len(RAWS) - 1


@pytest.mark.parametrize("processes", [1, 2])
def test_verify_finds_bytes_that_changed_behind_the_stamp(folder: Path, processes: int) -> None:
    job = settings(folder, "verify=true", f"processes={processes}")
    run(job)
    shard = folder / "train-000001.tar"
    before = shard.stat()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    run(settings(folder))
    with pytest.raises(ValueError, match=r"1 shards are not as they were indexed: train-000001\.tar has digest"):
        run(job)
    assert "train-000001.tar" in (folder / "out" / "report.html").read_text()


def test_verify_finds_a_copy_that_is_not_what_was_published(folder: Path) -> None:
    run(settings(folder))
    shard = folder / "heldout-000000.tar"
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(ValueError, match=r"heldout-000000\.tar has digest \w+, shards\.json has \w+"):
        run(settings(folder, "verify=true"))


def test_its_list_is_what_http_needs(folder: Path) -> None:
    run(settings(folder))
    with served(folder) as server:
        job = settings(folder, f"data.shards={server.url}", "verify=true")
        store = open_store(server.url, job.data.cache)
        assert store.list_shards("heldout") == ("heldout-000000.tar",)
        run(job)
    assert json.loads((folder / "out" / "summary.json").read_text())["changed"] == 0


def test_sources_of_a_mixture_are_indexed_each_in_its_folder(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "other", [text_sample(seed, 30) for seed in range(4)])
    mixture = f"{{arm: {{shards: '{folder}', weight: 1}}, text: {{shards: '{tmp_path / 'other'}', weight: 2}}}}"
    run(settings(folder, "data.shards=''", f"+data.mixture={mixture}"))
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["arm/train"]["samples"] == len(RAWS) - 1
    assert summary["text/train"]["samples"] == 4
    assert summary["arm/heldout"]["samples"] == 3
    assert "arm/train-000000.tar" in (folder / "out" / "report.html").read_text()
    assert "train-000000.tar" in (tmp_path / "other" / "shards.json").read_text()
