"""Chunks of a folder: every good one is kept with its key, every bad one is named, and none is looked for twice."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.data import actions as actions_module
from flagscale_vla.data.actions import Chunks, open_chunks
from flagscale_vla.data.index import build_index
from flagscale_vla.data.kept import PARTIAL
from flagscale_vla.data.starts import chunks_with_starts
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import Action, RawSample, State
from flagscale_vla.robots.statistics import hash_rank
from tests.data.test_index import array_bytes, rewrite, with_json
from tests.samples import (
    PANDA,
    STORED_STEPS,
    interleaved_sample,
    make_recipe,
    picture_sample,
    robot_sample,
    text_sample,
    write_shards,
)

DEAD = 1 << 22
"""No process has this number: Linux gives smaller ones."""
RAWS = [
    *(robot_sample(seed) for seed in range(12)),
    *(robot_sample(seed, PANDA) for seed in range(20, 24)),
    text_sample(0, 40),
    picture_sample(1, 20),
    interleaved_sample(30),
]
HORIZON = 8


def test_every_chunk_is_kept_with_its_steps_its_start_and_its_key(tmp_path: Path) -> None:
    write_shards(tmp_path, RAWS, max_bytes=40_000)
    chunks = open_chunks(LocalStore(tmp_path), "train", HORIZON)
    assert list(chunks.robots) == ["panda", "sawyer"]
    assert (len(chunks.robots["panda"]), len(chunks.robots["sawyer"])) == (4, 14)
    assert (sum(chunks.sound.values()), chunks.faults, chunks.num_invalid) == (len(RAWS), (), 0)
    wanted = {f"{raw.key}/{n}": entry for raw in RAWS for n, entry in enumerate(chunks_with_starts(raw.segments))}
    for robot in chunks.robots.values():
        for key, values, valid, start in zip(robot.keys, robot.values, robot.valid, robot.starts, strict=True):
            action, state = wanted.pop(key.partition("/")[2])
            np.testing.assert_array_equal(start, state)
            np.testing.assert_array_equal(values, action.values[:HORIZON])
            np.testing.assert_array_equal(valid, action.valid[:HORIZON])
    assert not wanted


def test_a_chunk_starts_at_the_last_state_before_it(tmp_path: Path) -> None:
    (state, action), (later, _) = (
        [part for part in robot_sample(seed).segments if isinstance(part, State | Action)] for seed in (1, 2)
    )
    segments = (action, state, action, later, action)
    assert next(start for _, start in chunks_with_starts(segments)) is None
    write_shards(tmp_path, [RawSample(key="talk", segments=segments)])
    kept = open_chunks(LocalStore(tmp_path), "train", HORIZON).robots["sawyer"].starts
    np.testing.assert_array_equal(kept, [np.full(4, np.nan), state.values, later.values])


def test_statistics_are_the_very_ones_of_pretraining(tmp_path: Path) -> None:
    write_shards(tmp_path, RAWS, max_bytes=40_000)
    index = build_index(LocalStore(tmp_path), "train", make_recipe().with_statistics({}))
    assert open_chunks(LocalStore(tmp_path), "train", HORIZON).statistics == index.statistics


def test_shards_are_read_once_and_again_where_they_or_the_horizon_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, RAWS[:6])
    first = open_chunks(LocalStore(tmp_path), "train", HORIZON)
    with monkeypatch.context() as patch:
        patch.setattr(actions_module, "keep_chunks", None)
        assert open_chunks(LocalStore(tmp_path), "train", HORIZON).digest() == first.digest()
    assert open_chunks(LocalStore(tmp_path), "train", HORIZON - 1).robots["sawyer"].values.shape == (6, HORIZON - 1, 4)
    for path in tmp_path.glob("train-*.tar"):
        path.unlink()
    write_shards(tmp_path, RAWS[:5])
    assert len(open_chunks(LocalStore(tmp_path), "train", HORIZON)) == 5


def test_a_choice_is_uniform_and_takes_the_smallest_hashes(tmp_path: Path) -> None:
    write_shards(tmp_path, RAWS)
    chunks = open_chunks(LocalStore(tmp_path), "train", HORIZON)
    chosen = chunks.choose(7)
    keys = [key for robot in chunks.robots.values() for key in robot.keys]
    assert {key for robot in chosen.robots.values() for key in robot.keys} == set(sorted(keys, key=hash_rank)[:7])
    assert chosen.statistics == chunks.statistics
    assert chunks.choose(18) is chunks
    assert chosen.digest() != chunks.digest()


def test_places_run_over_all_robots(tmp_path: Path) -> None:
    write_shards(tmp_path, RAWS)
    chunks = open_chunks(LocalStore(tmp_path), "train", HORIZON)
    taken = chunks.take(np.array([5, 3, 0]))
    assert taken["panda"].keys == tuple(chunks.robots["panda"].keys[row] for row in (3, 0))
    assert taken["sawyer"].keys == (chunks.robots["sawyer"].keys[1],)
    np.testing.assert_array_equal(taken["panda"].values, chunks.robots["panda"].values[[3, 0]])
    assert list(chunks.take(np.array([4]))) == ["sawyer"]
    assert list(chunks.only(["panda", "unheard"]).robots) == ["panda"]


def with_nan(raw: RawSample) -> bytes:
    (action,) = (segment for segment in raw.segments if isinstance(segment, Action))
    values = action.values.copy()
    values[3, 0] = np.nan
    return array_bytes(values)


def spoil(folder: Path) -> Chunks:
    """Five samples: one with NaN, one of an unknown robot, one past its episode's end, one damaged, one good."""
    (path,) = write_shards(folder, RAWS[:5])
    keys = [raw.key for raw in RAWS[:5]]

    def change(contents: dict[str, bytes]) -> None:
        contents[f"{keys[0]}.action.npy"] = with_nan(RAWS[0])
        with_json(contents, f"{keys[1]}.json", robot="unheard")
        contents[f"{keys[2]}.valid.npy"] = array_bytes(np.arange(STORED_STEPS) >= HORIZON)
        contents[f"{keys[3]}.action.npy"] = b"damaged"

    rewrite(path, change)
    return open_chunks(LocalStore(folder), "train", HORIZON)


def test_what_cannot_be_used_is_named_and_counted(tmp_path: Path) -> None:
    chunks = spoil(tmp_path)
    assert (len(chunks), sum(chunks.sound.values()), chunks.num_invalid, len(chunks.faults)) == (1, 1, 3, 4)
    reasons = [str(fault) for fault in chunks.faults]
    for fault, words in zip(
        reasons,
        [
            "its action holds NaN or infinity",
            "robot 'unheard' is not in embodiments.json, which has ['panda', 'sawyer']",
            f"none of its first {HORIZON} action steps is inside the episode",
            "action.npy: is not an .npy array",
        ],
        strict=True,
    ):
        assert words in fault
    assert list(chunks.statistics) == ["sawyer"]
    assert chunks.statistics["sawyer"].action.count == 1


def test_a_longer_horizon_than_was_stored_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, RAWS[:2])
    chunks = open_chunks(LocalStore(tmp_path), "train", STORED_STEPS + 1)
    assert len(chunks) == 0
    assert "its action has 16 steps; horizon=17 needs at least as many" in str(chunks.faults[0])


def test_a_folder_without_shards_robots_or_chunks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no train-\*.tar"):
        open_chunks(LocalStore(tmp_path), "train", HORIZON)
    write_shards(tmp_path, [text_sample(0, 20)])
    assert open_chunks(LocalStore(tmp_path), "train", HORIZON).robots == {}
    (tmp_path / "embodiments.json").unlink()
    with pytest.raises(ValueError, match=r"embodiments.json is missing"):
        open_chunks(LocalStore(tmp_path), "train", HORIZON)


def test_a_pass_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    write_shards(tmp_path, RAWS[:3])
    open_chunks(LocalStore(tmp_path), "train", HORIZON)
    (kept,) = (tmp_path / ".index").glob("*.chunks")
    left = kept.rename(kept.with_name(kept.name + PARTIAL.format(DEAD)))
    again = open_chunks(LocalStore(tmp_path), "train", HORIZON)
    assert len(again) == 3
    assert json.loads((kept / "chunks.json").read_text())["sound"] == {"train-000000.tar": 3}
    assert not left.exists()


def test_two_jobs_may_find_the_same_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, RAWS[:3])
    first = open_chunks(LocalStore(tmp_path), "train", HORIZON)
    (kept,) = (tmp_path / ".index").glob("*.chunks")
    shutil.rmtree(kept)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_chunks(LocalStore(tmp_path), "train", HORIZON), range(4)))
    assert {chunks.digest() for chunks in found} == {first.digest()}
    assert {path.name for path in kept.parent.glob("*.*")} == {kept.name, ".lock"}
