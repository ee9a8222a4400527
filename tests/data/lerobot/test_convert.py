"""`convert_lerobot`: every frame becomes a sample or is accounted for, and the settings do what they say."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flagscale_vla.config.convert_lerobot import ConvertLeRobotRun
from flagscale_vla.data.convert.converter import Refusal
from flagscale_vla.data.lerobot import convert
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.shards import list_shards
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import Action, Image, RawSample, State, Text
from flagscale_vla.robots.embodiments import load_embodiments
from tests.data.lerobot.written import (
    CAMERAS,
    LENGTHS,
    SIDES,
    TASKS,
    action_of,
    decode,
    png,
    state_of,
    write_v2,
    write_v3,
)
from tests.settings import load

HORIZON = 8
Samples = dict[tuple[int, int], tuple[RawSample, dict[str, Any]]]
"""Samples and their meta by (episode, frame)."""


def convert_dataset(root: Path, folder: Path, *overrides: str) -> Samples:
    """Run the job with `conf/convert_lerobot.yaml` and read back what it wrote."""
    settings = load(
        "convert_lerobot",
        f"source={root}",
        f"output={folder}",
        f"horizon={HORIZON}",
        "processes=1",
        "samples_per_shard=20",
        *overrides,
    )
    assert isinstance(settings, ConvertLeRobotRun)
    convert.run(settings)
    return read_samples(folder)


def read_samples(folder: Path) -> Samples:
    found: Samples = {}
    for shard in [*list_shards(folder, "train"), *list_shards(folder, "heldout")]:
        content = shard.read_bytes()
        for group in group_members(walk_tar(content, whole=True)):
            meta = parse_meta(shard.name, group, content)
            found[meta["episode"], meta["frame"]] = parse_sample(shard.name, group, content), meta
    return found


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    "write",
    [
        lambda root: write_v2(root, video=False),
        lambda root: write_v2(root, video=True, version="v2.0"),
        lambda root: write_v3(root, video=False),
        lambda root: write_v3(root, video=True),
    ],
)
def test_every_frame_is_a_sample(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    samples = convert_dataset(write(tmp_path / "toy set"), tmp_path / "out", "heldout_share=0.3")
    assert set(samples) == {(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)}
    for (episode, frame), (sample, meta) in samples.items():
        pictures, (state, text, action) = sample.segments[:2], sample.segments[2:]
        for place, picture in enumerate(pictures):
            assert isinstance(picture, Image)
            assert picture.name == CAMERAS[place]
            assert decode(picture.encoded) == (episode, frame, place)
        assert isinstance(state, State)
        np.testing.assert_array_equal(state.values[:4], np.asarray(state_of(episode, frame), np.float32))
        assert text == Text(text=TASKS[episode % 2], supervised=False)
        assert isinstance(action, Action)
        steps = np.minimum(np.arange(frame, frame + HORIZON), LENGTHS[episode] - 1)
        expected = np.asarray([action_of(episode, int(step)) for step in steps], np.float32)
        np.testing.assert_array_equal(action.values, expected)
        assert action.valid.sum() == min(HORIZON, LENGTHS[episode] - frame)
        assert meta["source"] == "toy set"
        assert sample.key.endswith(f"/toy-set-{episode:06d}-{frame:06d}")
    assert load_embodiments(tmp_path / "out")["sawyer"].cameras == CAMERAS
    figures = summary(tmp_path / "out")
    assert figures["samples"] + figures["heldout_samples"] == sum(LENGTHS)
    shards = {sample.key.split("/")[0]: episode for (episode, _), (sample, _) in samples.items()}
    assert len(shards) >= 2


def test_pictures_of_an_image_column_pass_through(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "toy", video=False)
    stored = pq.read_table(root / "data/chunk-000/episode_000000.parquet", columns=["observation.images.front"])
    samples = convert_dataset(root, tmp_path / "out")
    first = samples[0, 3][0].segments[0]
    assert isinstance(first, Image)
    assert first.encoded == stored.to_pylist()[3]["observation.images.front"]["bytes"]
    samples = convert_dataset(root, tmp_path / "small", f"image_pixels={SIDES[1] // 2}")
    first = samples[0, 3][0].segments[0]
    assert isinstance(first, Image)
    picture = PIL.Image.open(io.BytesIO(first.encoded))
    assert (picture.format, picture.size) == ("JPEG", (SIDES[1] // 2, SIDES[0] // 2))


def test_settings_choose(tmp_path: Path) -> None:
    samples = convert_dataset(
        write_v2(tmp_path / "toy", video=False),
        tmp_path / "out",
        "camera_keys=[observation.images.wrist]",
        "state_keys=[observation.state.extra]",
        "episodes=[2,0]",
        "stride=4",
        "delta_actions=true",
        "effector_indices=[3]",
        "name=mine",
        "robot=arm",
    )
    assert set(samples) == {(episode, frame) for episode in (0, 2) for frame in range(0, LENGTHS[episode], 4)}
    skipped = LENGTHS[0] + LENGTHS[2] - len(samples)
    assert summary(tmp_path / "out")["skipped"] == {"stride=4": skipped}
    sample, meta = samples[2, 4]
    assert sample.key.endswith("/mine-000002-000004")
    assert [type(segment) for segment in sample.segments] == [Image, State, Text, Action]
    state, action = sample.segments[1], sample.segments[3]
    assert isinstance(state, State)
    assert state.values.tolist() == [np.float32(4 / 7)]
    assert isinstance(action, Action)
    assert action.robot == "arm"
    actions = np.asarray([action_of(2, frame) for frame in range(4, 13)], np.float32)
    np.testing.assert_allclose(action.values[:, :3], np.diff(actions, axis=0)[:, :3], rtol=1e-6)
    np.testing.assert_array_equal(action.values[:, 3], actions[:8, 3])
    assert meta["num_frames"] == LENGTHS[2]


def test_words_are_the_subtasks(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "toy", video=False)

    def words(mode: str, *overrides: str) -> dict[tuple[int, int], str]:
        samples = convert_dataset(root, tmp_path / f"{mode}{len(overrides)}", f"instruction={mode}", *overrides)
        return {place: meta["instruction"] for place, (_, meta) in samples.items()}

    subtasks = words("subtask")
    assert [subtasks[0, frame] for frame in (0, 4, 5, 16)] == ["reach", "reach", "press", "press"]
    assert [subtasks[2, frame] for frame in (9, 10, 19, 22)] == ["grasp", "pull", "pull", "pull"]
    assert {subtasks[1, frame] for frame in range(LENGTHS[1])} == {TASKS[1]}
    assert words("cumulate")[2, 0] == "grasp pull"
    mixed = words("mixture")
    drawn = Counter(text == subtasks[place] for place, text in mixed.items() if place[0] != 1)
    assert 8 < drawn[True] < 32
    assert words("mixture", "subtask_share=1.0") == subtasks
    plain = write_v3(tmp_path / "plain", video=False)
    path = plain / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop(["action_config"]), path)
    with pytest.raises(ValueError, match=r"no episode of .*plain has an action_config.*instruction=task"):
        convert_dataset(plain, tmp_path / "none", "instruction=subtask")


def break_episodes(root: Path) -> None:
    """One picture of episode 0 is cut off, episode 1 has no file, and a frame of episode 2 has no task and a NaN."""
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    name = "observation.images.front"
    rows = table.column(name).to_pylist()
    rows[2] = {"bytes": png(np.zeros((64, 96, 3), np.uint8))[:40], "path": None}
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(rows, table.schema.field(name).type)), path)
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    path = root / "data/chunk-001/episode_000002.parquet"
    table = pq.read_table(path)
    tasks = [9 if row == 20 else 0 for row in range(LENGTHS[2])]
    states = [[np.nan if row == 3 else 0.0] * 4 for row in range(LENGTHS[2])]
    table = table.set_column(table.column_names.index("task_index"), "task_index", pa.array(tasks))
    place = table.column_names.index("observation.state")
    pq.write_table(
        table.set_column(place, "observation.state", pa.array(states, pa.list_(pa.float32(), 4))),
        path,
    )


def test_what_is_broken_is_refused_and_listed(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "toy", video=False)
    break_episodes(root)
    with pytest.raises(ValueError, match=r"rows are refused, more than max_refused_share=0\.01"):
        convert_dataset(root, tmp_path / "strict")
    samples = convert_dataset(root, tmp_path / "out", "max_refused_share=0.5", "image_pixels=32")
    bad = {(0, 2), (2, 3), (2, 20)} | {(1, frame) for frame in range(LENGTHS[1])}
    assert set(samples) == {(e, f) for e, length in enumerate(LENGTHS) for f in range(length)} - bad
    refused = [json.loads(line) for line in (tmp_path / "out/refused.jsonl").read_text().splitlines()]
    assert {(entry["place"], entry["reason"].partition(":")[0], entry["rows"]) for entry in refused} == {
        ("toy episode 0 frame 2", "picture cannot be read", 1),
        ("toy episode 1 frame 0", "data file cannot be read", LENGTHS[1]),
        ("toy episode 2 frame 20", "task has no words", 1),
        ("toy-000002-000003.state.npy", "holds NaN or infinity", 1),
    }
    assert summary(tmp_path / "out")["refused"] == len(bad)


def test_a_broken_video_refuses_what_is_left(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "toy", video=True)
    (root / "videos/chunk-000/observation.images.wrist/episode_000001.mp4").write_bytes(b"no video")
    samples = convert_dataset(root, tmp_path / "out", "max_refused_share=0.5")
    assert {episode for episode, _ in samples} == {0, 2}
    assert summary(tmp_path / "out")["refused_per_reason"] == {"video cannot be read": LENGTHS[1]}


def test_an_empty_episode_is_refused(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "toy", video=False)
    settings = load("convert_lerobot", f"source={root}", f"output={tmp_path / 'out'}")
    assert isinstance(settings, ConvertLeRobotRun)
    converter = convert.open_converter(settings)
    empty = replace(converter.selection.dataset.episode(1), length=0)
    assert list(converter.episode(empty)) == [Refusal(place="toy episode 1", reason="episode has no frames")]


def test_an_episode_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "toy", video=False)
    with pytest.raises(ValueError, match=r"episode 7 is not in .*toy, which has 3 episodes"):
        convert_dataset(root, tmp_path / "out", "episodes=[7]")
