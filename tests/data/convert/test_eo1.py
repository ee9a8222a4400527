"""`convert_eo1`: robots' frames, rows about them, and plain rows of one mixture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from flagscale_vla.config.convert_conversations import Coordinates, CoordinatesConfig
from flagscale_vla.config.convert_eo1 import ConvertEo1Run
from flagscale_vla.config.mixture import SourceConfig, Weigh
from flagscale_vla.data.convert import eo1
from flagscale_vla.records import Action, Image, State, Text
from flagscale_vla.robots.embodiments import load_embodiments
from tests.data.convert.reading import Stored, refusals, spell, stored_samples, turns, write_rows
from tests.data.lerobot.written import LENGTHS, TASKS, action_of, decode, state_of, write_v2, write_v3
from tests.samples import encode_picture, picture
from tests.settings import load, load_training

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
FIRST, SECOND = LENGTHS[0], LENGTHS[0] + LENGTHS[1]
"""Frames before episodes 1 and 2."""
HORIZON = 6
VLA = ("<image>What is next?", "press", "<image><image><state>press<vla>", "<action>", "<image>Done?", "yes")
PLAIN = {"question_id": "1", "image": "a.jpg", "conversations": turns("<image>Where?", "left"), "seq_length": 198}


def interleaved(*frames: str, view: list[list[str]], said: tuple[str, ...]) -> dict[str, Any]:
    return {"lerobot": list(frames), "view": view, "conversations": turns(*said)}


def acting(frame: int, *said: str, repo: str = "demo") -> dict[str, Any]:
    """A row with one frame and one picture."""
    texts = said or ("<image><state>go<vla>", "<action>")
    return interleaved(f"{repo} {frame} 16", view=[[FRONT]], said=texts)


GOOD = [
    interleaved(f"demo {FIRST + 2} 0", f"demo {FIRST + 3} 16", f"demo {FIRST + 8} 0",
                view=[[FRONT], [FRONT, WRIST], [WRIST]], said=VLA),
    acting(SECOND + 20),
    acting(3, "<image>pick?", "yes"),
    acting(3, "<image> look\n<state>go<vla>", "I go. <action>", "and now?", "I went."),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture's files: two robots' datasets, rows about one of them, rows about a picture."""
    folder = tmp_path_factory.mktemp("base")
    write_v2(folder / "robots/demo", video=True)
    write_v3(folder / "robots/org/other", video=False)
    (folder / "a.jpg").write_bytes(encode_picture(picture(np.random.default_rng(0), 48, 64)))
    write_rows(folder / "interleaved.jsonl", GOOD)
    write_rows(folder / "plain.jsonl", [PLAIN | {"seq_length": 100 * number} for number in range(10)])
    return folder


DEMO = {"repo_id": "demo", "root": "robots", "select_state_keys": ["observation.state"]}
ROWS = {"json_path": "interleaved.jsonl"}


def convert(base: Path, output: Path, mixture: dict[str, Any], **changes: Any) -> Path:
    output.mkdir(exist_ok=True)
    path = output / "given.yaml"
    OmegaConf.save(OmegaConf.create(mixture), path)
    run = load("convert_eo1")
    assert isinstance(run, ConvertEo1Run)
    fixed = {"processes": 1, "heldout_share": 0.0, "max_refused_share": 1.0, "horizon": HORIZON, "max_seq_length": 800}
    eo1.run(replace(run, mixture=str(path), base=str(base), output=str(output), **(fixed | changes)))
    return output


def convert_rows(base: Path, output: Path, rows: list[Any], demo: dict[str, Any]) -> list[Stored]:
    """Interleaved rows about a dataset."""
    write_rows(base / "some.jsonl", rows)
    mixture = {"mm_datasets": [{"json_path": "some.jsonl"}], "lerobot_datasets": [demo]}
    return stored_samples(convert(base, output, mixture) / "some")


def by_row(folder: Path) -> dict[int, Stored]:
    """Samples by their line: they lie in the order of the episodes that they show."""
    return {int(meta["row"].partition(":")[2]): (sample, meta) for sample, meta in stored_samples(folder)}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of all kinds, converted."""
    mixture = {
        "mm_datasets": [ROWS, {"json_path": "plain.jsonl", "sampling_strategy": "end:2", "vision_base_path": "."}],
        "lerobot_datasets": [DEMO | {"weight": 0.5}, {"repo_id": "org/other", "root": "robots", "episodes": [1]}],
    }
    return convert(base, tmp_path_factory.mktemp("whole"), mixture)


def test_an_interleaved_row_is_one_sample(whole: Path) -> None:
    sample, meta = by_row(whole / "interleaved")[1]
    assert spell(sample) == [
        "<front-0>", "u:What is next?", "a:press",
        "<front-1>", "<wrist-2>", "state", "u:press", "action",
        "<wrist-3>", "u:Done?", "a:yes",
    ]  # fmt: skip
    shown = [decode(segment.encoded) for segment in sample.segments if isinstance(segment, Image)]
    assert shown == [(1, 2, 0), (1, 3, 0), (1, 3, 1), (1, 8, 1)]
    (state,) = [segment for segment in sample.segments if isinstance(segment, State)]
    (action,) = [segment for segment in sample.segments if isinstance(segment, Action)]
    assert state.values == pytest.approx(state_of(1, 3))
    assert action.values == pytest.approx(np.array([action_of(1, frame) for frame in range(3, 9)]))
    assert action.valid.all()
    assert (state.robot, action.robot) == ("demo", "demo")
    assert meta["lerobot"] == GOOD[0]["lerobot"]
    assert meta["row"] == "interleaved.jsonl:1"


def test_a_chunk_ends_with_its_episode_and_text_may_lead_it(whole: Path) -> None:
    samples = by_row(whole / "interleaved")
    (action,) = [segment for segment in samples[2][0].segments if isinstance(segment, Action)]
    assert action.valid.tolist() == [True] * 3 + [False] * 3
    assert action.values[-1] == pytest.approx(action_of(2, LENGTHS[2] - 1))
    assert spell(samples[4][0]) == [
        "<front-0>",
        "u: look",
        "state",
        "u:go",
        "a:I go.",
        "action",
        "u:and now?",
        "a:I went.",
    ]


def test_weights_are_eo1s_counts(whole: Path) -> None:
    training = load_training("train_tiny_action", f"hydra.searchpath=[file://{whole}]", "+mixture=eo1")
    frames = sum(LENGTHS)
    expected = {"demo": int(frames * 0.5), "org-other": LENGTHS[1], "interleaved": len(GOOD), "plain": 2}
    sources = {name: SourceConfig(shards=str(whole / name), weight=float(n)) for name, n in expected.items()}
    assert training.data.mixture == sources
    assert (training.data.shards, training.data.weigh) == ("", Weigh.samples)
    summary = json.loads((whole / "summary.json").read_text())
    assert [row["weight"] for row in summary["datasets"]] == list(expected.values())
    assert summary["samples"] == frames + LENGTHS[1] + len(GOOD) + 2
    assert "org-other/report.html" in (whole / "report.html").read_text()


def test_each_dataset_keeps_its_own_robot(whole: Path) -> None:
    assert list(load_embodiments(whole / "demo")) == ["demo"]
    assert list(load_embodiments(whole / "org-other")) == ["org-other"]
    assert load_embodiments(whole / "interleaved") == load_embodiments(whole / "demo")
    assert load_embodiments(whole / "plain") == {}
    assert len(load_embodiments(whole / "org-other")["org-other"].state) == 5


def test_rows_that_are_too_long_are_refused_and_not_sampled(whole: Path) -> None:
    rows = [meta["row"] for _, meta in stored_samples(whole / "plain")]
    assert rows == ["plain.jsonl:8", "plain.jsonl:9"]
    assert refusals(whole / "plain") == {"plain.jsonl:10": "too long: seq_length=900 of 800"}


def test_a_second_start_does_nothing_and_a_lost_log_is_done_again(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.tar")}
    (lost,) = (whole / "interleaved/units").glob("*.json")
    content = (whole / "interleaved/train-000000.tar").read_bytes()
    lost.unlink()
    eo1.run(run_of(whole))
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*.tar")}
    assert [path.parent.name for path in after if after[path] != before[path]] == ["interleaved"]
    assert (whole / "interleaved/train-000000.tar").read_bytes() == content


def run_of(folder: Path) -> ConvertEo1Run:
    """The settings that a folder was made with."""
    saved = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(ConvertEo1Run), OmegaConf.load(folder / "config.yaml"))
    )
    assert isinstance(saved, ConvertEo1Run)
    return saved


def test_delta_actions_and_chosen_keys_reach_interleaved_rows(base: Path, tmp_path: Path) -> None:
    demo = {"delta_action": True, "effector_indices": [3], "select_video_keys": [WRIST]}
    row = interleaved(f"demo {FIRST + 2} 16", view=[[WRIST]], said=("<image><state>go<vla>", "<action>"))
    ((sample, _),) = convert_rows(base, tmp_path, [row], DEMO | demo)
    (action,) = [segment for segment in sample.segments if isinstance(segment, Action)]
    whole = np.array([action_of(1, frame) for frame in range(LENGTHS[1])])
    expected = np.diff(whole, axis=0)[2:8]
    expected[:, 3] = whole[2:8, 3]
    assert action.values == pytest.approx(expected, abs=1e-5)


def test_a_frames_number_counts_the_episodes_that_are_loaded(base: Path, tmp_path: Path) -> None:
    samples = convert_rows(base, tmp_path, [acting(3), acting(LENGTHS[2] + 1)], DEMO | {"episodes": [2, 0]})
    shown = [
        decode(segment.encoded) for sample, _ in samples for segment in sample.segments if isinstance(segment, Image)
    ]
    assert shown == [(0, 1, 0), (2, 3, 0)]


def test_points_follow_the_picture_that_is_stored(base: Path, tmp_path: Path) -> None:
    points = '<points x1="96" y1="32" x2="0" y2="64" alt="path">path</points>'
    row = acting(3, "<image>where?", points)
    write_rows(base / "some.jsonl", [row])
    mixture = {"mm_datasets": [{"json_path": "some.jsonl"}], "lerobot_datasets": [DEMO]}
    output = convert(base, tmp_path / "unknown", mixture, image_pixels=48)
    assert next(iter(refusals(output / "some").values())).startswith("coordinates of a resized picture")
    ways = CoordinatesConfig(source=Coordinates.absolute, target=Coordinates.absolute)
    output = convert(base, tmp_path / "known", mixture, image_pixels=48, coordinates=ways)
    ((sample, _),) = stored_samples(output / "some")
    assert spell(sample)[-1] == 'a:<points x1="48" y1="16" x2="0" y2="32" alt="path">path</points>'


BAD: list[tuple[dict[str, Any], str]] = [
    (acting(3, "<image>go<vla>", "<action>"), "action without a state"),
    (acting(3, "<image><state><state>go<vla>", "<action>"), "action without a state"),
    (acting(3, "<image><state>go<vla>", "going"), "action does not pair"),
    (acting(3, "<image><state>go", "<action>"), "action does not pair"),
    (acting(3, "<image><vla>go<state>", "<action>"), "action does not pair"),
    (acting(3, "<image><state>go<vla>", "<action><action>"), "action does not pair"),
    (acting(3, "<image><state>what?", "this"), "action does not pair"),
    (acting(3, "<image><image><state>go<vla>", "<action>"), "views do not pair"),
    (acting(3, "<state>go<vla>", "<action>"), "views do not pair"),
    (acting(sum(LENGTHS)), "frame out of range"),
    (acting(3, repo="other"), "unknown dataset"),
    (acting(3) | {"view": [["observation.images.top"]]}, "unknown view"),
    (acting(3) | {"view": [[FRONT], [WRIST]]}, "views do not pair"),
    (acting(3) | {"view": FRONT}, "bad views"),
    (acting(3) | {"lerobot": "demo 3 16"}, "bad frames"),
    (acting(3) | {"lerobot": ["demo 3"]}, "bad frame"),
    (acting(3) | {"lerobot": ["demo -3 16"]}, "bad frame"),
    (acting(3, "<image><state>go<vla>", "<action>", "and?"), "turns do not end with an answer"),
    (acting(3, "<image>what?", "<image>this"), "mark in an answer"),
    (acting(3, "<image>what?", ""), "empty turn"),
    (acting(3, "<image><video>what?", "this"), "film in a row"),
    (interleaved("demo 3 0", "demo 4 16", view=[[FRONT], []], said=("<image>a", "b")), "frames left over"),
    (interleaved("demo 3 0", "demo 4 16", view=[[FRONT, WRIST], [FRONT]],
                 said=("<image>a", "b", "<image><image><state>go<vla>", "<action>")), "views do not pair"),
]  # fmt: skip


def test_each_bad_row_is_refused_by_its_line(base: Path, tmp_path: Path) -> None:
    samples = convert_rows(base, tmp_path, [acting(0), *(row for row, _ in BAD)], DEMO)
    assert len(samples) == 1
    found = refusals(tmp_path / "some")
    kinds = [found[f"some.jsonl:{number}"].partition(":")[0] for number in range(2, len(BAD) + 2)]
    assert kinds == [kind for _, kind in BAD]


def test_a_damaged_film_costs_the_rows_that_show_it(base: Path, tmp_path: Path) -> None:
    write_v2(tmp_path / "robots/demo", video=True)
    for film in (tmp_path / "robots/demo/videos").rglob("*front/episode_000001.mp4"):
        film.write_bytes(b"no film")
    write_rows(tmp_path / "some.jsonl", [acting(FIRST), acting(0)])
    mixture = {"mm_datasets": [{"json_path": "some.jsonl"}], "lerobot_datasets": [DEMO]}
    output = convert(tmp_path, tmp_path / "out", mixture)
    assert [meta["row"] for _, meta in stored_samples(output / "some")] == ["some.jsonl:2"]
    assert list(refusals(output / "some")) == ["some.jsonl:1"]
    summary = json.loads((output / "demo/summary.json").read_text())
    assert (summary["samples"], summary["refused"]) == (sum(LENGTHS) - LENGTHS[1], LENGTHS[1])


def test_what_no_shard_can_hold_is_refused_by_its_line(base: Path, tmp_path: Path) -> None:
    write_v2(tmp_path / "robots/demo", video=False)
    write_v2(tmp_path / "robots/twin", video=False)
    path = tmp_path / "robots/demo/data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    states = table.column("observation.state").to_pylist()
    states[3] = [float("nan")] * 4
    place = table.column_names.index("observation.state")
    column = pa.array(states, table.schema.field("observation.state").type)
    pq.write_table(table.set_column(place, "observation.state", column), path)
    both = interleaved("demo 1 6", "twin 1 6", view=[[FRONT], [FRONT]], said=("<image><state>go<vla>", "<action>") * 2)
    write_rows(tmp_path / "some.jsonl", [acting(3), acting(2), both])
    mixture = {"mm_datasets": [{"json_path": "some.jsonl"}], "lerobot_datasets": [DEMO, DEMO | {"repo_id": "twin"}]}
    output = convert(tmp_path, tmp_path / "out", mixture)
    assert [meta["row"] for _, meta in stored_samples(output / "some")] == ["some.jsonl:2"]
    assert refusals(output / "some") == {
        "some.jsonl:1": "state holds NaN or infinity: nan",
        "some.jsonl:3": "two robots act: demo and twin; a sample holds the actions of one",
    }


def test_no_episode_is_in_both_splits(base: Path, tmp_path: Path) -> None:
    rows = [acting(frame) for frame in range(0, sum(LENGTHS), 2)]
    write_rows(base / "some.jsonl", rows)
    mixture = {"mm_datasets": [{"json_path": "some.jsonl"}], "lerobot_datasets": [DEMO]}
    output = convert(base, tmp_path, mixture, heldout_share=0.5)
    episodes = {}
    for split in ("train", "heldout"):
        own = {meta["episode"] for _, meta in stored_samples(output / "demo", split)}
        shown = [segment for sample, _ in stored_samples(output / "some", split) for segment in sample.segments]
        episodes[split] = {decode(segment.encoded)[0] for segment in shown if isinstance(segment, Image)}
        assert episodes[split] == own
    assert episodes["train"]
    assert episodes["heldout"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, {"reach", "press"}), ("cumulate", {"reach press"}), ("mix:0.5", {"reach", "press", TASKS[0]})],
)
def test_words_of_subtasks(base: Path, tmp_path: Path, value: object, expected: set[str]) -> None:
    demo = DEMO | {"train_subtask": value, "episodes": [0]}
    output = convert(base, tmp_path, {"lerobot_datasets": [demo]})
    said = [
        segment.text
        for sample, _ in stored_samples(output / "demo")
        for segment in sample.segments
        if isinstance(segment, Text)
    ]
    assert set(said) == expected
    assert len(said) == LENGTHS[0]


def test_a_dataset_that_cannot_be_read_stops_before_any_is_converted(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"given\.yaml: dataset 'none': .*info\.json is missing"):
        convert(base, tmp_path, {"lerobot_datasets": [DEMO, DEMO | {"repo_id": "none"}]})
    with pytest.raises(ValueError, match=r"none\.jsonl: there is no such file"):
        convert(base, tmp_path, {"mm_datasets": [{"json_path": "none.jsonl"}], "lerobot_datasets": [DEMO]})
    assert not list(tmp_path.rglob("*.tar"))


def test_two_datasets_of_one_name_are_told_apart(base: Path, tmp_path: Path) -> None:
    mixture = {"mm_datasets": [ROWS], "lerobot_datasets": [DEMO | {"episodes": [0]}, DEMO | {"episodes": [1]}]}
    output = convert(base, tmp_path, mixture)
    assert len(stored_samples(output / "demo")) == LENGTHS[0]
    assert len(stored_samples(output / "demo-2")) == LENGTHS[1]
    reasons = set(refusals(output / "interleaved").values())
    assert reasons == {"unclear dataset: two of lerobot_datasets are 'demo'"}
