"""The frame of converters: nothing is lost, doubled or hidden, however a run is shared out or interrupted."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.convert import ConvertRun
from flagscale_vla.data.convert.job import convert
from flagscale_vla.data.convert.pictures import PictureRule, decode_picture, read_size
from flagscale_vla.data.convert.plan import Row, group_rows, split_of
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.shards import list_shards
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.robots.embodiments import load_embodiments
from tests.data.convert.numbers import BAD_ROW, NAN_ROW, SKIPPED_ROW, Numbers
from tests.samples import encode_picture, picture

ROWS = 40


def settings(folder: Path, **changes: object) -> ConvertRun:
    run = ConvertRun(
        output=str(folder),
        processes=1,
        samples_per_shard=6,
        heldout_share=0.2,
        max_refused_share=0.05,
        image_pixels=0,
        jpeg_quality=90,
    )
    return replace(run, **changes)


def run_numbers(folder: Path, *, rows: int = ROWS, deadly: str = "", **changes: object) -> None:
    run = settings(folder, **changes)
    convert(Numbers(run=run, rows=rows, deadly=deadly), run)


def digests(folder: Path) -> dict[str, str]:
    """Of everything a reader of shards looks at."""
    paths = [*sorted(folder.glob("*.tar")), folder / "refused.jsonl", folder / "embodiments.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def keys(folder: Path, split: str) -> list[str]:
    names = []
    for shard in list_shards(folder, split):
        content = shard.read_bytes()
        names += [
            parse_sample(shard.name, group, content).key.split("/")[1]
            for group in group_members(walk_tar(content, whole=True))
        ]
    return names


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards written by one process without a stop."""
    folder = tmp_path_factory.mktemp("alone")
    run_numbers(folder)
    return folder


def test_every_row_is_a_sample_or_accounted_for(alone: Path) -> None:
    good = {f"row-{row:04d}" for row in range(ROWS)} - {f"row-{row:04d}" for row in (BAD_ROW, NAN_ROW, SKIPPED_ROW)}
    train, heldout = keys(alone, "train"), keys(alone, "heldout")
    assert sorted(train + heldout) == sorted(good)
    assert {f"row-{row:04d}" for row in range(ROWS) if split_of(f"row {row}", 0.2) == "heldout"} & good == set(heldout)
    refused = [json.loads(line) for line in (alone / "refused.jsonl").read_text().splitlines()]
    assert {(entry["place"], entry["reason"]) for entry in refused} == {
        (f"line {BAD_ROW}", f"is odd: {BAD_ROW}"),
        (f"row-{NAN_ROW:04d}.state.npy", "holds NaN or infinity"),
    }


def test_the_summary_counts(alone: Path) -> None:
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["samples"] == summary["steps"] == len(keys(alone, "train"))
    assert summary["heldout_samples"] == len(keys(alone, "heldout"))
    assert summary["refused"] == 2
    assert summary["refused_per_reason"] == {"is odd": 1, "holds NaN or infinity": 1}
    assert summary["skipped"] == {"a stride": 1}
    assert summary["samples_per_second"] > 0
    assert list(load_embodiments(alone)) == ["sawyer"]
    page = (alone / "report.html").read_text()
    assert page.count("data:image/png") == min(8, summary["shards"])
    assert f"line {BAD_ROW}: is odd: {BAD_ROW}" in page
    assert not list(alone.rglob("*.tmp"))


def test_processes_write_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    run_numbers(tmp_path, processes=2)
    assert digests(tmp_path) == digests(alone)


def test_a_killed_run_goes_on(alone: Path, tmp_path: Path) -> None:
    """The process dies within a unit; the next start converts what is missing and nothing else."""
    folder, deadly = tmp_path / "out", str(tmp_path / "deadly")
    process = multiprocessing.get_context("fork").Process(target=run_numbers, args=(folder,), kwargs={"deadly": deadly})
    process.start()
    process.join()
    assert process.exitcode == -9
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert 0 < len(done) < len(list(alone.glob("*.tar")))
    run_numbers(folder, deadly=deadly, processes=1)
    assert digests(folder) == digests(alone)
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
    assert not (folder / "unfinished").exists()


def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a process died"):
        run_numbers(tmp_path / "out", deadly=str(tmp_path / "deadly"), processes=2)


def test_a_finished_run_is_left_alone(alone: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*") if path.name != "config.yaml"}
    run_numbers(alone)
    assert {path: path.stat().st_mtime_ns for path in alone.rglob("*") if path.name != "config.yaml"} == before


def test_too_many_refusals_stop_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of \d+ rows .* than max_refused_share=0\.0 lets pass:\n  row-0011\.state"):
        run_numbers(tmp_path, max_refused_share=0.0)
    assert not (tmp_path / "summary.json").exists()
    run_numbers(tmp_path, max_refused_share=0.02)
    assert json.loads((tmp_path / "summary.json").read_text())["refused"] == 2


def test_another_dataset_is_refused(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the dataset has changed"):
        run_numbers(alone, rows=ROWS - 1)
    with pytest.raises(ValueError, match=r"-\d+\.json belongs to no unit"):
        run_numbers(alone, rows=12)
    with pytest.raises(ConfigError, match="jpeg_quality: saved with 90, asked for 80"):
        run_numbers(alone, jpeg_quality=80)
    with pytest.raises(ValueError, match="nothing to convert"):
        run_numbers(tmp_path, rows=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train-000000.tar").touch()
    with pytest.raises(ValueError, match=r"train-000000\.tar was not written by this job"):
        run_numbers(tmp_path / "other")


def test_units_keep_rows_whole_and_apart(tmp_path: Path) -> None:
    run = settings(tmp_path, samples_per_shard=10, heldout_share=0.0)
    sizes = [4, 4, 4, 25, 1]
    rows = [Row(name=str(place), samples=size, payload=place) for place, size in enumerate(sizes)]
    assert [unit.payload for unit in group_rows(rows, run)] == [(0, 1), (2,), (3,), (4,)]


def test_the_heldout_share_is_about_met() -> None:
    held = {name for name in map(str, range(4000)) if split_of(name, 0.1) == "heldout"}
    assert 340 < len(held) < 460
    assert held < {name for name in map(str, range(4000)) if split_of(name, 0.2) == "heldout"}


def test_pictures_that_fit_are_kept() -> None:
    pixels = picture(np.random.default_rng(0), 60, 80)
    rule = PictureRule(longest=80, quality=95)
    for kind in ("JPEG", "PNG"):
        encoded = encode_picture(pixels, kind)
        assert rule.recode(encoded) == encoded
    smaller = PictureRule(longest=40, quality=95).recode(encode_picture(pixels, "PNG"))
    assert read_size(smaller) == (40, 30)
    other = rule.recode(encode_picture(pixels, "BMP"))
    assert other.startswith(b"\xff\xd8\xff")
    assert np.abs(decode_picture(other).astype(int) - pixels).mean() < 1.5


def test_bad_pictures_are_refused() -> None:
    encoded = encode_picture(picture(np.random.default_rng(0), 60, 80))
    rule = PictureRule(longest=40, quality=95)
    with pytest.raises(ValueError, match=r"^picture cannot be read: "):
        rule.recode(b"no picture")
    with pytest.raises(ValueError, match=r"^picture cannot be read: "):
        rule.recode(encoded[: len(encoded) // 2])
