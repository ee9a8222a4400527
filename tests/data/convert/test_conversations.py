"""`convert_conversations` on rows of the real form, good and bad."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.convert_conversations import ConvertConversationsRun, FilmConfig
from flagscale_vla.data.convert.conversations import run
from flagscale_vla.data.convert.films import choose_frames
from flagscale_vla.data.shards import list_shards
from flagscale_vla.records import Image, Video
from tests.data.convert.reading import refusals, settings, spell, stored_samples, texts_of, turns, write_rows
from tests.samples import encode_picture, picture

BOX = '```json\n[\n    {"bbox_2d": [8, 6, 32, 24], "label": "cup"}\n]\n```'
FRAMES, RATE = 90, 15


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, and a film whose frame n has the grey value n."""
    folder = tmp_path_factory.mktemp("base")
    generator = np.random.default_rng(0)
    (folder / "a.jpg").write_bytes(encode_picture(picture(generator, 48, 64)))
    (folder / "b.png").write_bytes(encode_picture(picture(generator, 30, 40), "PNG"))
    (folder / "c.webp").write_bytes(encode_picture(picture(generator, 30, 40), "WEBP"))
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-400])
    write_film(folder / "film.mp4")
    (folder / "bad.mp4").write_bytes(b"no film")
    return folder


def write_film(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "0", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 2 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def convert(base: Path, output: Path, rows: list[object], *changes: str) -> Path:
    write_rows(base / "rows.jsonl", rows)
    where = (f"files=[{base / 'rows.jsonl'}]", f"output={output}", "processes=1", "heldout_share=0")
    run(settings(ConvertConversationsRun, "convert_conversations", *where, "max_refused_share=1", *changes))
    return output


def test_every_form_of_row_becomes_a_sample(base: Path, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "<image>go"}]
    messages += [{"role": "assistant", "content": "left", "loss": False}, {"role": "user", "content": "wrong"}]
    messages += [{"role": "assistant", "content": "right"}]
    rows: list[object] = [
        {"question_id": 7, "image": "a.jpg", "conversations": turns("<image>\nWhere?", BOX), "seq_length": 198},
        {"image": ["a.jpg", "b.png"], "conversations": turns("Compare <image> \n<image>\nnow", "same", "sure?", "yes")},
        {"conversations": turns("is it red?", "no")},
        {"messages": messages, "images": ["c.webp"]},
        {"question": "what is it?", "answer": "a cup", "image": "a.jpg"},
    ]
    samples = stored_samples(convert(base, tmp_path, rows))
    assert texts_of(samples) == [
        ["<image-0>", "u:Where?", f"a:{BOX}"],
        ["u:Compare", "<image-0>", "<image-1>", "u:now", "a:same", "u:sure?", "a:yes"],
        ["u:is it red?", "a:no"],
        ["<image-0>", "u:go", "p:left", "u:wrong", "a:right"],
        ["<image-0>", "u:what is it?", "a:a cup"],
    ]
    assert samples[0][1] == {"question_id": 7, "source": "conversations", "row": "rows.jsonl:1"}
    assert samples[3][1]["system"] == "be short"
    stored = [segment for sample, _ in samples for segment in sample.segments if isinstance(segment, Image)]
    kept = ["a.jpg", "a.jpg", "b.png"]
    assert [image.encoded for image in stored[:3]] == [(base / name).read_bytes() for name in kept]
    assert PIL.Image.open(io.BytesIO(stored[3].encoded)).format == "JPEG"
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_each_bad_row_is_named_with_its_line(base: Path, tmp_path: Path) -> None:
    rows: list[object] = [
        {"image": "a.jpg", "conversations": turns("<image>x", "y")},
        "{broken",
        {"image": "a.jpg", "conversations": turns("x", "y")},
        {"image": ["a.jpg"], "conversations": turns("<image><image>x", "y")},
        {"image": "none.jpg", "conversations": turns("<image>x", "y")},
        {"image": "cut.jpg", "conversations": turns("<image>x", "y")},
        {"image": "http://host/a.jpg", "conversations": turns("<image>x", "y")},
        {"conversations": turns("x", "y", "z")},
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
        {"conversations": [{"from": "tool", "value": "x"}, {"from": "gpt", "value": "y"}]},
        {"conversations": turns("<state>go<vla>", "<action>")},
        {"image": "a.jpg", "conversations": turns("x", "<image>y")},
        {"conversations": turns("x", "")},
        {"text": "x"},
        {"video": "bad.mp4", "conversations": turns("<video>x", "y")},
        {"image": "a.jpg", "images": ["b.png"], "conversations": turns("<image>x", "y")},
        {"conversations": turns("x", "half \ud800")},
        {"image": "a.jpg", "conversations": [*turns("<image>x"), {"from": "gpt", "value": "y", "loss": False}]},
    ]
    found = refusals(convert(base, tmp_path, rows))
    kinds = {int(place.partition(":")[2]): reason.partition(":")[0] for place, reason in found.items()}
    assert kinds == {
        2: "not JSON",
        3: "pictures do not pair",
        4: "pictures do not pair",
        5: "picture is missing",
        6: "picture cannot be read",
        7: "picture is not here",
        8: "turns do not end with an answer",
        9: "turns do not alternate",
        10: "unknown speaker",
        11: "mark of a robot",
        12: "mark in an answer",
        13: "empty turn",
        14: "no conversation",
        15: "film cannot be read",
        16: "two lists of files",
        17: "bad text",
        18: "nothing to train on",
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["samples"], summary["refused"]) == (1, 17)


def test_coordinates_follow_the_picture_that_is_stored(base: Path, tmp_path: Path) -> None:
    rows: list[object] = [
        {"image": "a.jpg", "conversations": turns("<image>where?", BOX)},
        {"image": ["a.jpg", "b.png"], "conversations": turns("<image><image>where?", BOX)},
        {"image": "b.png", "conversations": turns("<image>where?", '{"bbox_2d": [8, 6, 64, 24]}')},
    ]
    output = convert(base, tmp_path / "half", rows, *ways("absolute", "absolute"), "image_pixels=32")
    ((sample, _),) = stored_samples(output)
    assert spell(sample)[-1] == "a:" + BOX.replace("8, 6, 32, 24", "4, 3, 16, 12")
    kinds = [reason.partition(":")[0] for reason in refusals(output).values()]
    assert kinds == ["coordinates of which picture", "coordinate outside the picture"]
    unknown = convert(base, tmp_path / "unknown", rows[:1], "image_pixels=32")
    assert next(iter(refusals(unknown).values())).startswith("coordinates of a resized picture")
    relative = convert(base, tmp_path / "relative", rows[:1], *ways("relative_1000", "relative_1"))
    assert "[0.008, 0.006, 0.032, 0.024]" in spell(stored_samples(relative)[0][0])[-1]


def ways(source: str, target: str) -> tuple[str, str]:
    return f"coordinates.source={source}", f"coordinates.target={target}"


def test_a_film_is_sampled_evenly_from_first_to_last(base: Path, tmp_path: Path) -> None:
    rows: list[object] = [{"video": "film.mp4", "conversations": turns("<video>\nWhat happens?", "it opens")}]
    ((sample, _),) = stored_samples(convert(base, tmp_path, rows, "film.fps=1", "film.min_frames=2"))
    film = sample.segments[0]
    assert isinstance(film, Video)
    assert spell(sample) == ["<video-0>", "u:What happens?", "a:it opens"]
    shown = [np.asarray(PIL.Image.open(io.BytesIO(frame))).mean() / 2 for frame in film.frames]
    expected = np.linspace(0, FRAMES - 1, 6).round()
    assert np.abs(np.array(shown) - expected).max() < 1.0
    assert film.fps == pytest.approx(1.0)


def test_frames_are_as_many_as_qwen_takes() -> None:
    def count(total: int, rate: float, fps: float = 1.0, least: int = 4, most: int = 60) -> int:
        return len(choose_frames(total, rate, FilmConfig(fps=fps, min_frames=least, max_frames=most)))

    assert count(3000, 30) == 60
    assert count(700, 30) == 22
    assert count(60, 30) == 4
    assert count(3, 30) == 2
    assert count(900, 30, fps=2.0, most=768) == 60
    assert choose_frames(90, 15, FilmConfig(fps=1.0, min_frames=2, max_frames=60))[-1] == 89


def test_a_sampled_row_keeps_its_split(base: Path, tmp_path: Path) -> None:
    rows: list[object] = [{"conversations": turns(f"q{number}", "a")} for number in range(60)]
    every = convert(base, tmp_path / "all", rows, "heldout_share=0.3", "samples_per_shard=10")
    some = convert(base, tmp_path / "some", rows, "heldout_share=0.3", "sampling=random:50%")
    held = {sample.segments[0] for sample, _ in stored_samples(every, "heldout")}
    assert 5 < len(held) < 30
    assert len(list_shards(every, "train")) > 1
    for split in ("train", "heldout"):
        for sample, _ in stored_samples(some, split):
            assert (sample.segments[0] in held) == (split == "heldout")


@pytest.mark.parametrize(
    "change", ["files=[]", "name=a/b", "seed=-1", "coordinates.source=absolute", "film.min_frames=1", "film.fps=0"]
)
def test_bad_settings_are_refused(change: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(change.partition("=")[0].rpartition(".")[2])):
        settings(ConvertConversationsRun, "convert_conversations", change)
