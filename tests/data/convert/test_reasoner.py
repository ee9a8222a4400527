"""`convert_reasoner`: trajectories in Embodied-Reasoner's form, what of them is trained on, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flagscale_vla.config.convert_conversations import ConvertConversationsRun
from flagscale_vla.config.convert_reasoner import ConvertReasonerRun
from flagscale_vla.config.export_conversations import ExportConversationsRun
from flagscale_vla.data.conversation import UNSUPERVISED
from flagscale_vla.data.convert import conversations, export_conversations, reasoner
from flagscale_vla.data.convert.export_conversations import part_path
from flagscale_vla.data.shards import ShardWriter, list_shards
from flagscale_vla.records import Image, Text, Video
from tests.data.convert.reading import refusals, settings, spell, stored_samples, texts_of, write_rows
from tests.samples import encode_picture, make_recipe, picture, robot_sample

FEEDBACK = "<|feedback|>"
FIRST = '<image>This is an image from your frontal perspective. Task: "Put the apple in the fridge."'
AFTER = '<image>\nAfter executing your previous "{}", you get this new image above.'
ILLEGAL = f"{FEEDBACK} Your previous action is illegal: open the fridge before."


def decide(thought: str, action: str) -> str:
    return f"{thought}\n<DecisionMaking>{action}</DecisionMaking>"


SEEN = decide("The fridge is left.", "navigate to Fridge")
WRONG = decide("I put it in.", "put Fridge")
AGAIN = decide("It must be open first.", "open Fridge")
DONE = decide("All is done.", "end")


def trajectory(*said: str, images: int) -> dict[str, Any]:
    """A row with pictures `0.jpg`, `1.jpg`, ..."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
    system = {"role": "system", "content": "You are a helpful assistant."}
    return {"messages": [system, *messages], "images": [f"{number}.jpg" for number in range(images)]}


REFLECTION = trajectory(
    FIRST, SEEN, AFTER.format("navigate to Fridge"), WRONG, ILLEGAL, WRONG, ILLEGAL, AGAIN, AFTER.format("open"), DONE,
    images=3,
)  # fmt: skip
PLAIN = trajectory(FIRST, SEEN, AFTER.format("navigate to Fridge"), DONE, images=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    generator = np.random.default_rng(0)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encode_picture(picture(generator, 45, 80)))
    return folder


def convert(base: Path, output: Path, rows: list[Any], *changes: str) -> Path:
    (base / "rows.json").write_text(json.dumps(rows))
    where = (f"files=[{base / 'rows.json'}]", f"output={output}", "processes=1", "heldout_share=0")
    reasoner.run(settings(ConvertReasonerRun, "convert_reasoner", *where, "max_refused_share=1", *changes))
    return output


def answers(output: Path, row: int = 0) -> list[str]:
    return [word for word in spell(stored_samples(output)[row][0]) if word[0] in "ap"]


def test_a_trajectory_is_one_sample(base: Path, tmp_path: Path) -> None:
    ((sample, meta),) = stored_samples(convert(base, tmp_path, [PLAIN]))
    assert spell(sample) == [
        "<image-0>",
        "u:" + FIRST.removeprefix("<image>"),
        f"a:{SEEN}",
        "<image-1>",
        "u:" + AFTER.format("navigate to Fridge").removeprefix("<image>"),
        f"a:{DONE}",
    ]
    assert meta["system"] == "You are a helpful assistant."
    assert meta["row"] == "rows.json:1"


def test_each_rule_trains_on_its_answers(base: Path, tmp_path: Path) -> None:
    def trained(rule: str) -> list[str]:
        return answers(convert(base, tmp_path / rule, [REFLECTION], f"mask={rule}"))

    assert trained("all") == [f"a:{text}" for text in (SEEN, WRONG, WRONG, AGAIN, DONE)]
    assert trained("after_feedback") == [f"p:{SEEN}", f"p:{WRONG}", f"a:{WRONG}", f"a:{AGAIN}", f"a:{DONE}"]
    assert trained("per_turn") == [f"a:{SEEN}", f"p:{WRONG}", f"p:{WRONG}", f"a:{AGAIN}", f"a:{DONE}"]
    plain = convert(base, tmp_path / "plain", [PLAIN], "mask=after_feedback")
    assert answers(plain) == [f"a:{SEEN}", f"a:{DONE}"]


def test_the_labels_are_those_of_the_authors_collator(base: Path, tmp_path: Path) -> None:
    """`labels[:k + 1] = -100`, k the place of the first feedback: all assistants' tokens behind it, none before."""
    conversation = make_recipe(horizon=3).conversation
    layouts = []
    for rule in ("all", "after_feedback"):
        ((sample, _),) = stored_samples(convert(base, tmp_path / rule, [REFLECTION], f"mask={rule}"))
        layouts.append(conversation.lay_out(sample.segments, [4, 4, 4], None))
    every, after = layouts
    assert every.tokens.tolist() == after.tokens.tolist()
    text = conversation.encoder.decode(every.tokens.tolist())
    behind = len(conversation.encoder.encode(text[: text.index(FEEDBACK)]))
    places = np.arange(len(every.labels))
    first = np.flatnonzero(after.labels != UNSUPERVISED)[0]
    expected = np.where(places >= first, every.labels, UNSUPERVISED)
    assert after.labels.tolist() == expected.tolist()
    assert behind > 0
    assert conversation.encoder.decode(every.tokens[: first + 1].tolist()).count(FEEDBACK) == 1


def test_a_feedback_inside_an_answer_cuts_it(base: Path, tmp_path: Path) -> None:
    said = decide(f"This {FEEDBACK} was wrong.", "end")
    output = convert(base, tmp_path, [trajectory(FIRST, said, images=1)], "mask=after_feedback")
    before, mark, after = said.partition(FEEDBACK)
    assert answers(output) == [f"p:{before}{mark}", f"a:{after}"]


def test_a_row_may_say_itself_what_is_trained_on(base: Path, tmp_path: Path) -> None:
    row = trajectory(FIRST, SEEN, AFTER.format("x"), DONE, images=2)
    row["messages"][2]["loss"] = False
    for rule in ("all", "after_feedback", "per_turn"):
        assert answers(convert(base, tmp_path / rule, [row], f"mask={rule}")) == [f"p:{SEEN}", f"a:{DONE}"]


def test_bad_trajectories_are_named(base: Path, tmp_path: Path) -> None:
    rows = [
        PLAIN,
        trajectory(FIRST, SEEN, images=2),
        trajectory(FIRST, "I do nothing.", images=1),
        trajectory(FIRST, SEEN + SEEN, images=1),
        trajectory(FIRST, SEEN, ILLEGAL, images=1),
        PLAIN | {"images": ["0.jpg", "none.jpg"]},
    ]
    output = convert(base, tmp_path / "strict", rows)
    kinds = {place: reason.partition(":")[0] for place, reason in refusals(output).items()}
    assert kinds == {
        "rows.json:2": "pictures do not pair",
        "rows.json:3": "not one decision",
        "rows.json:4": "not one decision",
        "rows.json:5": "turns do not end with an answer",
        "rows.json:6": "picture is missing",
    }
    assert "texts have 1 marks, the row lists 2" in refusals(output)["rows.json:2"]
    loose = convert(base, tmp_path / "loose", rows, "one_decision=false")
    assert set(refusals(loose)) == {"rows.json:2", "rows.json:5", "rows.json:6"}


def export(shards: Path, output: Path, *changes: str) -> Path:
    where = (f"shards={shards}", f"output={output}", "processes=1")
    export_conversations.run(settings(ExportConversationsRun, "export_conversations", *where, *changes))
    return output


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_back_as_they_were(base: Path, tmp_path: Path) -> None:
    shards = convert(base, tmp_path / "shards", [PLAIN, REFLECTION], "mask=after_feedback")
    output = export(shards, tmp_path / "rows")
    for row, back in zip([PLAIN, REFLECTION], rows_of(output / "train.jsonl"), strict=True):
        assert [{**turn, "loss": None} for turn in back["messages"]] == [
            {**turn, "loss": None} for turn in row["messages"]
        ]
        for name, path in zip(row["images"], back["images"], strict=True):
            assert (output / path).read_bytes() == (base / name).read_bytes()
    again = tmp_path / "again"
    convert(base, again, [], f"files=[{output / 'train.jsonl'}]", f"base={output}", "mask=all")
    assert [sample.segments for sample, _ in stored_samples(again)] == [
        sample.segments for sample, _ in stored_samples(shards)
    ]


def test_films_and_eo1s_spelling_come_back(base: Path, tmp_path: Path) -> None:
    frames = tuple((base / f"{number}.jpg").read_bytes() for number in range(4))
    segments = (
        Video(name="video-0", frames=frames, fps=1.5),
        Text(text="\n What happens?", supervised=False),
        Image(name="image-0", encoded=frames[0]),
        Text(text="It opens.", supervised=True),
    )
    with ShardWriter(tmp_path / "shards", "train", max_bytes=1 << 30) as writer:
        writer.write("film", segments, {"system": "be short"})
    output = export(tmp_path / "shards", tmp_path / "rows", "form=conversations")
    ((row),) = rows_of(output / "train.jsonl")
    assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt"]
    where = (f"files=[{output / 'train.jsonl'}]", f"output={tmp_path / 'again'}", "processes=1", "heldout_share=0")
    conversations.run(settings(ConvertConversationsRun, "convert_conversations", *where, "marks=plain"))
    ((sample, meta),) = stored_samples(tmp_path / "again")
    assert sample.segments == segments
    assert (meta["system"], meta["id"]) == ("be short", "film")


def test_what_no_row_can_say_is_refused(base: Path, tmp_path: Path) -> None:
    half = (Text(text="a", supervised=False, assistant=True), Text(text="b", supervised=True))
    ask = Text(text="go", supervised=False)
    with ShardWriter(tmp_path / "shards", "train", max_bytes=1 << 30) as writer:
        writer.write("good", (ask, Text(text="yes", supervised=True)), {})
        writer.write("robot", robot_sample(0).segments, {})
        writer.write("half", (ask, *half), {})
        writer.write("alone", half[1:], {})
        writer.write("mark", (Text(text="an <image>", supervised=False), half[1]), {})
    with pytest.raises(ValueError, match=r"4 of 5 samples cannot be written.*robot: state or action"):
        export(tmp_path / "shards", tmp_path / "rows")
    output = export(tmp_path / "shards", tmp_path / "rows", "max_refused_share=0.5")
    assert len(rows_of(output / "train.jsonl")) == 1
    assert {place: reason.partition(":")[0] for place, reason in refusals(output).items()} == {
        "robot": "state or action",
        "half": "answer trained on in part",
        "alone": "turns do not alternate",
        "mark": "text with a mark",
    }


def test_a_stopped_export_goes_on(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = convert(base, tmp_path / "shards", [PLAIN] * 5, "samples_per_shard=2")
    whole = export(shards, tmp_path / "whole")
    rows = (whole / "train.jsonl").read_bytes()
    assert [len(texts) for texts in texts_of(stored_samples(shards))] == [6] * 5
    part_path(whole, list_shards(shards, "train")[1]).unlink()
    done = [export_conversations.export_shard]
    written = []
    monkeypatch.setattr(export_conversations, "export_shard", lambda *job: (written.append(job[-1]), done[0](*job)))
    assert (export(shards, whole) / "train.jsonl").read_bytes() == rows
    assert [path.stem for path in written] == ["train-000001"]


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "no.txt", [])
    with pytest.raises(ValueError, match="holds no shards"):
        export(tmp_path, tmp_path / "rows")
