"""AgileX recordings of the real form, made with h5py and PyAV: what is in them is what comes out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale_vla.action.binning import Binning
from flagscale_vla.action.units import Units
from flagscale_vla.config.convert_agilex import AgilexRun, Phrasing, Prompt, Subtask, Variant
from flagscale_vla.data.convert.agilex.job import embodiment_of, run
from flagscale_vla.data.convert.agilex.windows import follow_joints
from flagscale_vla.data.convert.pictures import decode_picture
from flagscale_vla.data.read import parse_meta, parse_sample
from flagscale_vla.data.shards import list_shards
from flagscale_vla.data.tar import group_members, walk_tar
from flagscale_vla.records import Action, Image, RawSample, State, Text
from flagscale_vla.robots.layout import Kind, parts_of
from flagscale_vla.robots.poses import euler_to_matrix, follow_steps, six_to_matrix
from flagscale_vla.robots.statistics import Gatherer, RobotStatistics, no_statistics
from tests.settings import load

ROWS = 70
STILL = (10, 11, 40)
"""Rows that are equal to the one before."""
FILMS = {"high": 0, "right": 1, "left": 2}


def shade(camera: int, row: int) -> int:
    """Brightness of a frame: every row's is its own, and every camera's."""
    return 10 + 3 * row + 5 * camera


def write_film(path: Path, camera: int, frames: int, rate: int = 30) -> None:
    """H.264 with key frames far apart, as cameras write."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": "40", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for row in range(frames):
            pixels = np.full((48, 64, 3), shade(camera, row), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def make_rows(seed: int) -> NDArray[np.float64]:
    """A walk of two hands, f64[ROWS, 14]."""
    generator = np.random.default_rng(seed)
    rows = np.cumsum(generator.normal(size=(ROWS, 14)) * np.tile([*[0.01] * 3, *[0.1] * 3, 0.02], 2), axis=0)
    for row in STILL:
        rows[row] = rows[row - 1]
    return rows


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes; the second's annotation is one task of two stretches."""
    folder = tmp_path_factory.mktemp("agilex")
    for episode in range(2):
        (folder / f"episode_{episode}").mkdir()
        for name, camera in FILMS.items():
            write_film(folder / f"episode_{episode}" / f"cam_{name}.mp4", camera, ROWS)
        with h5py.File(folder / f"episode_{episode}" / "state.hdf5", "w") as file:
            file["action"] = make_rows(episode)
            file["qpos"] = make_rows(10 + episode)
    return folder


def stretch(episode: int = 0, start: int = 1, end: int = ROWS, **changes: object) -> dict[str, Any]:
    data = {name: f"episode_{episode}/cam_{name}.mp4" for name in FILMS} | {"state": f"episode_{episode}/state.hdf5"}
    frame = {"start_frame": start, "end_frame": end}
    return {"raw_task": "pour the water", "task": "grasp the bottle", "frame": frame, "data": data} | changes


def settings(recordings: Path, folder: Path, entries: list[Any], **changes: object) -> AgilexRun:
    folder.mkdir(exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps({"pour": entries}))
    found = load("convert_agilex")
    assert isinstance(found, AgilexRun)
    places = {"output": str(folder / "out"), "root": str(recordings)}
    small = {"processes": 1, "heldout_share": 0.0, "horizon": 8, "tail": 7, "max_refused_share": 1.0}
    given = {"annotations": [str(folder / "annotations.json")]} | places | small | changes
    return dataclasses.replace(found, **given)


def read(folder: Path) -> list[tuple[RawSample, dict[str, Any]]]:
    samples = []
    for shard in list_shards(folder, "train"):
        content = shard.read_bytes()
        samples += [
            (parse_sample(shard.name, group, content), parse_meta(shard.name, group, content))
            for group in group_members(walk_tar(content, whole=True))
        ]
    return samples


def of_kind(raw: RawSample, kind: type) -> list[Any]:
    return [segment for segment in raw.segments if isinstance(segment, kind)]


def moving(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.delete(rows, STILL, axis=0)


def test_samples_hold_what_was_recorded(recordings: Path, tmp_path: Path) -> None:
    job = settings(recordings, tmp_path, [stretch()])
    run(job)
    samples = read(tmp_path / "out")
    rows = moving(make_rows(0))
    kept = np.delete(np.arange(ROWS), STILL)
    assert [meta["frame"] for _, meta in samples] == [*range(0, len(rows) - 1, 3), len(rows) - 2]
    for raw, meta in samples:
        start = meta["frame"]
        assert meta["row"] == kept[start]
        (state,), (action,), (text,) = (of_kind(raw, kind) for kind in (State, Action, Text))
        np.testing.assert_allclose(state.values[[0, 1, 2, 9]], rows[start, [0, 1, 2, 6]], atol=1e-6)
        np.testing.assert_allclose(six_to_matrix(state.values[13:19]), euler_to_matrix(rows[start, 10:13]), atol=1e-6)
        steps = min(8, len(rows) - 1 - start)
        assert action.valid.tolist() == [step < steps for step in range(8)]
        reached = follow_steps(rows[start], action.values[:steps])
        np.testing.assert_allclose(
            reached[:, [0, 1, 2, 6, 7, 8, 9, 13]],
            rows[start + 1 : start + 1 + steps][:, [0, 1, 2, 6, 7, 8, 9, 13]],
            atol=1e-5,
        )
        for hand in (slice(3, 6), slice(10, 13)):
            wanted = euler_to_matrix(rows[start + 1 : start + 1 + steps, hand])
            np.testing.assert_allclose(euler_to_matrix(reached[:, hand]), wanted, atol=1e-5)
        np.testing.assert_allclose(action.values[steps:, [0, 1, 2, 3, 4, 5]], 0, atol=1e-6)
        assert "Your overall task is: pour the water Currently, focus on completing the subtask: grasp" in text.text
        assert not text.supervised


def test_pictures_are_those_of_their_rows(recordings: Path, tmp_path: Path) -> None:
    run(settings(recordings, tmp_path, [stretch(start=31, end=60)]))
    samples = read(tmp_path / "out")
    assert samples[0][1]["row"] == 30
    for raw, meta in samples:
        images = of_kind(raw, Image)
        assert [image.name for image in images] == ["cam_high", "cam_right_wrist", "cam_left_wrist"]
        for camera, image in enumerate(images):
            assert abs(decode_picture(image.encoded).mean() - shade(camera, meta["row"])) < 1.4


def test_first_and_last_frame_count_from_one_and_belong_to_the_stretch(recordings: Path, tmp_path: Path) -> None:
    job = settings(recordings, tmp_path, [stretch(end=30), stretch(start=31)], frame_interval=1)
    run(job)
    rows = [(meta["episode"], meta["row"]) for _, meta in read(tmp_path / "out")]
    # The last row of a stretch has no step of its own ahead.
    assert rows == [(0, row) for row in range(29) if row not in STILL] + [
        (1, row) for row in range(30, ROWS - 1) if row not in STILL
    ]


def test_joints_are_differences_and_grippers_are_not(recordings: Path, tmp_path: Path) -> None:
    run(settings(recordings, tmp_path, [stretch()], variant=Variant.qpos))
    joints = moving(make_rows(10))
    for raw, meta in read(tmp_path / "out"):
        (state,), (action,) = of_kind(raw, State), of_kind(raw, Action)
        start, steps = meta["frame"], int(action.valid.sum())
        np.testing.assert_allclose(state.values, joints[start], atol=1e-6)
        np.testing.assert_allclose(
            follow_joints(joints[start], action.values[:steps]), joints[start + 1 : start + 1 + steps], atol=1e-5
        )


def test_steps_may_span_several_rows_and_end_with_the_stretch(recordings: Path, tmp_path: Path) -> None:
    job = settings(recordings, tmp_path, [stretch()], action_interval=3, tail=0)
    run(job)
    rows = moving(make_rows(0))
    samples = read(tmp_path / "out")
    assert samples[-1][1]["frame"] == len(rows) - 1 - 8 * 3
    for raw, meta in samples:
        (action,) = of_kind(raw, Action)
        assert action.valid.all()
        reached = follow_steps(rows[meta["frame"]], action.values)
        np.testing.assert_allclose(reached[:, :3], rows[meta["frame"] + 3 :: 3][:8, :3], atol=1e-5)
    assert embodiment_of(job).fps == 10


def test_grippers_are_mended(recordings: Path, tmp_path: Path) -> None:
    run(settings(recordings, tmp_path, [stretch()], gripper_scale=0.1, gripper_offset=[0.5, -0.5]))
    rows = moving(make_rows(0))
    raw, meta = read(tmp_path / "out")[3]
    (state,), (action,) = of_kind(raw, State), of_kind(raw, Action)
    np.testing.assert_allclose(state.values[[9, 19]], rows[meta["frame"], [6, 13]] * 0.1 + [0.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(
        action.values[0, [6, 13]], rows[meta["frame"] + 1, [6, 13]] * 0.1 + [0.5, -0.5], atol=1e-6
    )


def test_a_model_may_name_the_subtask_first(recordings: Path, tmp_path: Path) -> None:
    run(settings(recordings, tmp_path, [stretch()], subtask=Subtask.answer))
    raw, _ = read(tmp_path / "out")[0]
    asked, answered = of_kind(raw, Text)
    assert "Your output must include two components" in asked.text
    assert "grasp the bottle" not in asked.text
    assert (answered.text, answered.supervised) == ("grasp the bottle", True)
    assert isinstance(raw.segments[-1], Action)


@pytest.mark.parametrize(
    ("subtask", "expected"),
    [(Subtask.leave, "pour the water"), (Subtask.give, "pour the water Subtask: grasp the bottle")],
)
def test_a_plain_prompt_is_the_task(recordings: Path, tmp_path: Path, subtask: Subtask, expected: str) -> None:
    run(settings(recordings, tmp_path, [stretch()], prompt=Prompt.plain, subtask=subtask))
    raw, _ = read(tmp_path / "out")[0]
    assert [text.text for text in of_kind(raw, Text)] == [expected]


def test_a_task_may_be_said_in_many_ways(recordings: Path, tmp_path: Path) -> None:
    ways = [f"Pour {number}" for number in range(6)]
    (tmp_path / "phrases.json").write_text(json.dumps({"pour the water": ways}))
    settled = {"prompt": Prompt.plain, "subtask": Subtask.leave, "phrases": str(tmp_path / "phrases.json")}
    said = {}
    for name, phrasing in {"one": Phrasing.any, "again": Phrasing.any, "first": Phrasing.first}.items():
        run(settings(recordings, tmp_path / name, [stretch(end=60)], **settled, phrasing=phrasing))
        samples = read(tmp_path / name / "out")
        said[name] = [of_kind(raw, Text)[0].text for raw, _ in samples]
        assert [(meta["instruction"], meta["task"]) for _, meta in samples] == [
            (words, "pour the water") for words in said[name]
        ]
    assert said["one"] == said["again"]
    assert len(set(said["one"])) > 3
    assert set(said["first"]) == {"Pour 0"}
    (tmp_path / "phrases.json").write_text(json.dumps({"pour the water": ways, "other": []}))
    with pytest.raises(ValueError, match="must be an object that has a list of texts for each task"):
        run(settings(recordings, tmp_path / "bad", [stretch()], **settled))


def test_a_task_without_words_is_refused(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "phrases.json").write_text(json.dumps({"pour the water": ["pour"]}))
    entries = [stretch(), stretch(raw_task="box-517mm")]
    run(settings(recordings, tmp_path, entries, phrases=str(tmp_path / "phrases.json")))
    (line,) = (tmp_path / "out" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "task has no phrases: 'box-517mm'"


@pytest.mark.parametrize("variant", list(Variant))
def test_action_tokenizers_know_the_layout(variant: Variant) -> None:
    job = load("convert_agilex", f"variant={variant.value}")
    assert isinstance(job, AgilexRun)
    parts = parts_of(embodiment_of(job))
    assert [part.arm for part in parts] == ["right"] * (len(parts) // 2) + ["left"] * (len(parts) // 2)
    kinds = {Variant.eepose: [Kind.position, Kind.rotation, Kind.gripper], Variant.qpos: [Kind.gripper, Kind.joints]}
    assert [part.kind for part in parts] == kinds[variant] * 2


def break_rows(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "w") as file:
        file["action"], file["qpos"] = make_rows(0), make_rows(1)
        change(file)


def put(file: h5py.File, key: str, values: NDArray[np.float64]) -> None:
    del file[key]
    file[key] = values


BROKEN: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no qpos": (lambda file: file.pop("qpos") and None, "recording cannot be read"),
    "another width": (lambda file: put(file, "action", np.zeros((ROWS, 7))), "recording has another form"),
    "fewer rows": (lambda file: put(file, "qpos", np.zeros((ROWS - 1, 14))), "recording has another form"),
    "NaN": (lambda file: put(file, "action", np.full((ROWS, 14), np.nan)), "numbers are not finite: row 0"),
    "standing": (lambda file: put(file, "action", np.ones((ROWS, 14))), "stands still: 1 of 70 rows move"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recording_is_refused_with_its_reason(recordings: Path, tmp_path: Path, name: str) -> None:
    change, reason = BROKEN[name]
    break_rows(tmp_path / "broken.hdf5", change)
    entry = stretch()
    entry["data"]["state"] = str(tmp_path / "broken.hdf5")
    refusal = refused(recordings, tmp_path, entry)
    assert reason in refusal["reason"]


def refused(recordings: Path, folder: Path, entry: object) -> dict[str, str]:
    """The refusal of an entry that stands between two good ones."""
    run(settings(recordings, folder, [stretch(), entry, stretch(episode=1)]))
    (line,) = (folder / "out" / "refused.jsonl").read_text().splitlines()
    refusal = json.loads(line)
    assert refusal["place"].endswith("annotations.json: pour: 2")
    assert {meta["episode"] for _, meta in read(folder / "out")} == {0, 2}
    return refusal


def test_what_is_no_stretch_is_refused(recordings: Path, tmp_path: Path) -> None:
    backwards = stretch(start=9, end=3)
    pathless = stretch(data={"high": "a.mp4", "left": "b.mp4", "state": "c.hdf5"})
    for number, entry in enumerate([None, backwards, pathless, stretch(raw_task="")]):
        assert "annotation is no stretch" in refused(recordings, tmp_path / str(number), entry)["reason"]


def test_films_that_cannot_be_used_are_refused(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(b"no film at all")
    write_film(tmp_path / "short.mp4", 0, ROWS - 1)
    reasons = {"gone.mp4": "film is missing", "noise.mp4": "film cannot be read", "short.mp4": "film is too short"}
    for name, reason in reasons.items():
        entry = stretch()
        entry["data"]["left"] = str(tmp_path / name)
        assert reason in refused(recordings, tmp_path / name.removesuffix(".mp4"), entry)["reason"]


def test_stretches_past_the_recording_are_refused(recordings: Path, tmp_path: Path) -> None:
    assert "has 70 rows, end_frame=71" in refused(recordings, tmp_path, stretch(end=ROWS + 1))["reason"]


def test_annotations_that_are_none_are_named(recordings: Path, tmp_path: Path) -> None:
    job = settings(recordings, tmp_path, [])
    Path(job.annotations[0]).write_text("[]")
    with pytest.raises(ValueError, match=r"annotations.json: must be an object that has a list of stretches"):
        run(job)


def test_stretches_of_one_episode_are_held_out_together(recordings: Path, tmp_path: Path) -> None:
    entries = [stretch(episode, start, start + 29) for episode in (0, 1) for start in (1, 31)]
    run(settings(recordings, tmp_path, entries, heldout_share=0.5))
    splits = {}
    for split in ("train", "heldout"):
        for shard in list_shards(tmp_path / "out", split):
            content = shard.read_bytes()
            for group in group_members(walk_tar(content, whole=True)):
                splits.setdefault(parse_meta(shard.name, group, content)["recording"], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == 2


def tokenizer_of(job: AgilexRun, samples: list[tuple[RawSample, dict[str, Any]]]) -> Binning:
    gatherer = Gatherer(14)
    for raw, _ in samples:
        gatherer.add(of_kind(raw, Action)[0].values)
    statistics = RobotStatistics(state=no_statistics(), action=gatherer.finish())
    return Binning(bins=256, units=Units({job.robot: embodiment_of(job)}, {job.robot: statistics}))


def test_robobrains_own_lines_hold_the_same_samples(recordings: Path, tmp_path: Path) -> None:
    plain = settings(recordings, tmp_path / "plain", [stretch()])
    run(plain)
    samples = read(tmp_path / "plain" / "out")
    tokenizer = tokenizer_of(plain, samples)
    tokenizer.save(tmp_path / "tokenizer")
    run(settings(recordings, tmp_path / "both", [stretch()], jsonl=True, tokenizer=str(tmp_path / "tokenizer")))
    (file,) = (tmp_path / "both" / "out" / "robobrain").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == len(samples)
    for line, (raw, meta) in zip(lines, samples, strict=True):
        assert list(line) == ["raw_task", "task", "image", "action_eepose_token", "state", "action", "conversations"]
        (state,), (action,) = of_kind(raw, State), of_kind(raw, Action)
        np.testing.assert_allclose(np.load(line["action"]["eepose"]), action.values, atol=1e-6)
        states = np.load(line["state"]["eepose"])
        assert states.shape == (8, 20)
        np.testing.assert_allclose(states[0], state.values, atol=1e-6)
        assert np.load(line["state"]["qpos"]).shape == np.load(line["action"]["qpos"]).shape == (8, 14)
        codes = np.load(line["action_eepose_token"])
        np.testing.assert_array_equal(codes, tokenizer.encode("agilex", action.values[None])[0][None])
        assert Path(line["image"][1]).name == f"right_wrist_{meta['row']}.jpg"
        assert [Path(path).read_bytes() for path in line["image"]] == [image.encoded for image in of_kind(raw, Image)]
        asked, answered = line["conversations"]
        assert asked["value"].count("<image>") == 3
        assert answered == {"from": "gpt", "value": "<action_token>"}


def test_a_tokenizer_of_another_robot_is_refused_at_the_start(recordings: Path, tmp_path: Path) -> None:
    job = settings(recordings, tmp_path, [stretch()])
    run(job)
    tokenizer_of(job, read(tmp_path / "out")).save(tmp_path / "tokenizer")
    other = dataclasses.replace(job, jsonl=True, tokenizer=str(tmp_path / "tokenizer"), output=str(tmp_path / "again"))
    with pytest.raises(ValueError, match="robot='piper' was not fitted"):
        run(dataclasses.replace(other, robot="piper"))
    with pytest.raises(ValueError, match=r"knows robot 'agilex' with .*right_dx.*, not .*right_joint_1"):
        run(dataclasses.replace(other, variant=Variant.qpos))
