"""Reading LeRobot datasets: every version gives the same rows, and each frame is the right one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flagscale_vla.data.lerobot.dataset import LeRobotDataset
from flagscale_vla.data.lerobot.deltas import chunk, difference, integrate
from flagscale_vla.data.lerobot.info import flatten_names
from flagscale_vla.data.lerobot.select import Choice, select
from flagscale_vla.data.lerobot.video import read_frames
from tests.data.lerobot.written import (
    CAMERAS,
    FPS,
    LENGTHS,
    SUBTASKS,
    TASKS,
    action_of,
    coded,
    decode,
    state_of,
    write_v2,
    write_v3,
    write_video,
)

WRITERS: dict[str, Callable[[Path], Path]] = {
    "v2.0 image": lambda root: write_v2(root, video=False, version="v2.0"),
    "v2.1 video": lambda root: write_v2(root, video=True),
    "v3.0 image": lambda root: write_v3(root, video=False),
    "v3.0 video": lambda root: write_v3(root, video=True),
}


@pytest.fixture(scope="module", params=list(WRITERS))
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    root = WRITERS[request.param](tmp_path_factory.mktemp("dataset") / "toy")
    return LeRobotDataset.open(root)


def test_meta_is_read(dataset: LeRobotDataset) -> None:
    assert [episode.length for episode in dataset.episodes.values()] == list(LENGTHS)
    assert dict(dataset.tasks) == dict(enumerate(TASKS))
    assert dataset.features["action"].names == ("dx", "dy", "dz", "gripper")
    assert dataset.episodes[1].tasks == (TASKS[1],)
    parts = [[(part.end, part.text) for part in episode.subtasks] for episode in dataset.episodes.values()]
    assert parts == SUBTASKS


def test_rows_are_the_episodes(dataset: LeRobotDataset) -> None:
    for episode, length in enumerate(LENGTHS):
        table = dataset.frame_table(episode, ["observation.state", "action", "task_index", "timestamp"])
        states = np.asarray([state_of(episode, frame) for frame in range(length)], np.float32)
        np.testing.assert_array_equal(table["observation.state"], states)
        np.testing.assert_array_equal(table["action"][:, 3], np.arange(length) % 2)
        assert table["timestamp"].shape == (length, 1)
        assert set(table["task_index"].ravel().tolist()) == {episode % 2}


@pytest.mark.parametrize("step", [1, 4])
def test_every_frame_is_the_right_one(dataset: LeRobotDataset, step: int) -> None:
    for episode, length in enumerate(LENGTHS):
        for place, name in enumerate(CAMERAS):
            wanted = range(step - 1, length, step)
            shown = [decode(frame) for frame in dataset.frames(episode, f"observation.images.{name}", wanted)]
            assert shown == [(episode, frame, place) for frame in wanted]


def test_a_single_frame_is_found(dataset: LeRobotDataset) -> None:
    for index in (0, 16, 17, 25, 26, sum(LENGTHS) - 1):
        episode, frame = dataset.locate(index)
        assert sum(LENGTHS[:episode]) + frame == index
        picture = next(iter(dataset.frames(episode, "observation.images.wrist", [frame])))
        assert decode(picture) == (episode, frame, 1)
    with pytest.raises(ValueError, match="frame 49 is not in"):
        dataset.locate(sum(LENGTHS))


def test_far_frames_are_sought(tmp_path: Path) -> None:
    """Over many groups of pictures, forwards, near and far."""
    path = tmp_path / "long.mp4"
    write_video(path, [coded(frame // 200, frame % 200, 0) for frame in range(400)])
    for wanted in ([0, 1, 399], [150], [5, 90, 95, 230, 231, 390], list(range(380, 400))):
        shown = [decode(frame) for frame in read_frames(path, [frame / FPS for frame in wanted], FPS)]
        assert shown == [(frame // 200, frame % 200, 0) for frame in wanted]
    with pytest.raises(ValueError, match=r"video has no frame at 20\.0000 s"):
        list(read_frames(path, [20.0], FPS))
    with pytest.raises(ValueError, match=r"video has no frame at 5\.0200 s"):
        list(read_frames(path, [5.02], FPS))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="video cannot be read"):
        list(read_frames(path, [0.0], FPS))


def test_columns_are_chosen_in_order(dataset: LeRobotDataset) -> None:
    everything = select(dataset, "toy", Choice())
    assert everything.embodiment.state == ("x", "y", "z", "gripper", "extra_0")
    assert everything.embodiment.cameras == CAMERAS
    assert (everything.embodiment.name, everything.embodiment.fps) == ("sawyer", FPS)
    choice = Choice(
        camera_keys=("observation.images.wrist",),
        state_keys=("observation.state.extra", "observation.state"),
        action_keys=("action", "observation.state"),
        robot="arm",
    )
    some = select(dataset, "toy", choice)
    assert some.embodiment.state[0] == "extra_0"
    assert some.embodiment.action[3:5] == ("action_gripper", "state_x")
    states, actions = some.arrays(1)
    assert states.shape == (LENGTHS[1], 5)
    np.testing.assert_array_equal(actions[:, 4:], states[:, 1:])
    assert (some.embodiment.name, some.embodiment.cameras) == ("arm", ("wrist",))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(state_keys=("observation.sate",)), "'observation.sate' is no feature of"),
        (Choice(camera_keys=("action",)), "camera_keys=['action']: action is float32"),
        (Choice(action_keys=("observation.images.front",)), "these would pass: ['observation.state'"),
        (Choice(effector_indices=(4,)), "effector_indices=[4] must be different dims of the action, in [0, 3]"),
    ],
)
def test_wrong_choices_are_named(dataset: LeRobotDataset, choice: Choice, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        select(dataset, "toy", choice)


def test_deltas_are_eo1s() -> None:
    """Against EO-1's own formula, and back."""
    actions = np.asarray([action_of(2, frame) for frame in range(23)], np.float32)
    theirs = np.concatenate([np.diff(actions, axis=0), np.diff(actions, axis=0)[-1:]])
    theirs[:, 3] = actions[:, 3]
    ours = difference(actions, (3,))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(integrate(ours, actions[0], (3,)), actions, atol=1e-5)
    assert not difference(actions[:1]).any()


def test_chunks_end_with_the_episode() -> None:
    actions = np.arange(10, dtype=np.float32).reshape(5, 2)
    values, valid = chunk(actions, 3, 4)
    assert values[:, 0].tolist() == [6, 8, 8, 8]
    assert valid.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (["a", "b"], ["a", "b"]),
        ({"motors": ["a", "b"]}, ["a", "b"]),
        ({"left": {"motors": ["a"]}, "right": ["b"]}, ["a", "b"]),
        ({"b": 1, "a": 0}, ["a", "b"]),
        ([["a", "b"]], ["a", "b"]),
        (None, []),
    ],
)
def test_names_of_any_form(names: object, flat: list[str]) -> None:
    assert flatten_names(names) == flat


def change_info(root: Path, **changes: object) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damaged_meta_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"info\.json is missing: .* is no LeRobot dataset"):
        LeRobotDataset.open(tmp_path)
    root = write_v2(tmp_path / "toy", video=False)
    change_info(root, total_frames=50)
    with pytest.raises(ValueError, match=r"49 frames are listed, .* total_frames=50"):
        LeRobotDataset.open(root)
    change_info(root, codebase_version="v1.6")
    with pytest.raises(ValueError, match=r"codebase_version=v1\.6 is not read; these are: v2\.0, v2\.1, v3\.0"):
        LeRobotDataset.open(root)
    change_info(root, codebase_version="v2.1", total_frames=49, fps="fast")
    with pytest.raises(ValueError, match=r"info\.json cannot be read: ValueError .*fast"):
        LeRobotDataset.open(root)
    change_info(root, fps=20)
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0}\n')
    with pytest.raises(ValueError, match=r"episodes\.jsonl:1 cannot be read: KeyError 'length'"):
        LeRobotDataset.open(root)


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    dataset = LeRobotDataset.open(write_v2(tmp_path / "toy", video=False))
    path = dataset.episodes[0].data
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(ValueError, match=r"data file and meta disagree: .* has 16 rows of episode 0 in 1 runs"):
        dataset.frame_table(0, ["action"])
    path = dataset.episodes[1].data
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(8, -1, -1))), path)
    with pytest.raises(ValueError, match="frames are out of order"):
        dataset.frame_table(1, ["action"])
    dataset.episodes[2].data.write_bytes(b"PAR1 no parquet")
    with pytest.raises(ValueError, match="data file cannot be read"):
        dataset.frame_table(2, ["action"])
