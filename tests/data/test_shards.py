"""Shards: what is written is what `webdataset` reads, whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import webdataset

from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.read import parse_sample
from flagscale_vla.data.shards import ShardWriter, encode_members, list_shards, next_shard
from flagscale_vla.data.tar import Group, Member
from flagscale_vla.records import Action, Image, RawSample, Segment, State, Text, Video


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def robot_segments(seed: int) -> list[Segment]:
    values = np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32)
    return [
        Image(name="front", encoded=jpeg(seed)),
        Image(name="wrist", encoded=jpeg(seed + 1)),
        State(values=values[0], robot="sawyer"),
        Text(text="open the door", supervised=False),
        Action(values=values, valid=np.arange(6) < 4, robot="sawyer"),
    ]


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", max_bytes=1 << 20) as writer:
        for number in range(5):
            writer.write(f"door-{number:04d}", robot_segments(number), {"task": "door", "fps": 20})
    samples = list(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"door-{number:04d}" for number in range(5)]
    for number, sample in enumerate(samples):
        image, _, state, _, action = robot_segments(number)
        assert isinstance(image, Image)
        assert isinstance(state, State)
        assert isinstance(action, Action)
        assert sample["front.jpg"] == image.encoded
        assert np.array_equal(np.load(io.BytesIO(sample["state.npy"])), state.values)
        assert np.array_equal(np.load(io.BytesIO(sample["action.npy"])), action.values)
        assert np.array_equal(np.load(io.BytesIO(sample["valid.npy"])), action.valid)
        header = json.loads(sample["json"])
        assert header["robot"] == "sawyer"
        assert header["schema_version"] == 2
        assert header["segments"][0] == {"image": "front.jpg"}
        assert header["segments"][4] == {"action": "action.npy", "valid": "valid.npy"}


def test_a_full_shard_is_followed_by_another(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", max_bytes=20_000, first=3, stride=2) as writer:
        for number in range(9):
            writer.write(f"k{number}", robot_segments(number), {})
    assert [path.name for path in list_shards(tmp_path, "train")][:2] == ["train-000003.tar", "train-000005.tar"]
    assert next_shard(tmp_path, "train") % 2 == 0
    assert next_shard(tmp_path, "heldout") == 0


def write_until_interrupted(folder: Path) -> None:
    with ShardWriter(folder, "train", max_bytes=1) as writer:
        writer.write("first", robot_segments(0), {})
        writer.max_bytes = 1 << 30
        writer.write("second", robot_segments(1), {})
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_finished_shards_only(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        with ShardWriter(tmp_path / folder, "train", max_bytes=1 << 20) as writer:
            writer.write("k", robot_segments(0), {"task": "door"})
    first, second = (tmp_path / folder / "train-000000.tar" for folder in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path) -> None:
    nan = np.full((2, 4), np.nan, np.float32)
    valid = np.ones(2, bool)
    with ShardWriter(tmp_path, "train", max_bytes=1 << 20) as writer:
        with pytest.raises(ValueError, match=r"bad\.action\.npy: holds NaN"):
            writer.write("bad", [Action(values=nan, valid=valid, robot="r")], {})
        with pytest.raises(ValueError, match="steps must agree"):
            writer.write("bad", [Action(values=np.zeros((3, 4), np.float32), valid=valid, robot="r")], {})
        with pytest.raises(ValueError, match="neither JPEG nor PNG"):
            writer.write("bad", [Image(name="front", encoded=b"GIF89a")], {})
        with pytest.raises(ValueError, match="two images are called"):
            writer.write("bad", [Image(name="a", encoded=jpeg(0)), Image(name="a", encoded=jpeg(1))], {})
        with pytest.raises(ValueError, match="must be letters"):
            writer.write("a.b", [Text(text="x", supervised=False)], {})
        writer.write("good", [Text(text="x", supervised=True)], {})
        with pytest.raises(ValueError, match="written before"):
            writer.write("good", [Text(text="x", supervised=True)], {})
    with pytest.raises(ValueError, match="exists already"), ShardWriter(tmp_path, "train", max_bytes=1) as writer:
        writer.write("other", [Text(text="x", supervised=True)], {})


def parsed(members: dict[str, bytes]) -> RawSample:
    """The sample whose members have these contents."""
    places, content = {}, b""
    for name, part in members.items():
        places[name] = Member(name=f"k.{name}", header=0, start=len(content), size=len(part))
        content += part
    return parse_sample("train-000000.tar", Group(key="k", start=0, end=len(content), members=places), content)


def film(fps: float = 2.0) -> Video:
    return Video(name="clip", frames=tuple(jpeg(number) for number in range(5)), fps=fps)


def test_a_film_is_kept_frame_by_frame() -> None:
    segments = (film(), Text(text="what happens?", supervised=False), Text(text="it opens", supervised=True))
    members = dict(encode_members("k", segments, {}))
    assert list(members) == [*(f"clip-{number:03d}.jpg" for number in range(5)), "json"]
    entry = json.loads(members["json"])["segments"][0]
    assert entry == {"video": [f"clip-{number:03d}.jpg" for number in range(5)], "fps": 2.0}
    assert parsed(members).segments == segments


def test_a_film_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k: video 'clip' has no frames"):
        encode_members("k", [Video(name="clip", frames=(), fps=1.0)], {})
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="it must be above 0, at most 1000"):
            encode_members("k", [film(fps)], {})
    with pytest.raises(ValueError, match=r"two images are called 'clip-001\.jpg'"):
        encode_members("k", [film(), Image(name="clip-001", encoded=jpeg(0))], {})
    members = dict(encode_members("k", [film()], {}))
    names = [f"clip-{number:03d}.jpg" for number in range(5)]
    for entry in ({"video": names, "fps": 0}, {"video": [], "fps": 1}, {"video": names, "fps": True}, {"video": names}):
        header = json.dumps({"schema_version": 2, "segments": [entry]}).encode()
        with pytest.raises(BadSampleError, match="no text, image, video, state or action"):
            parsed(members | {"json": header})
    del members["clip-003.jpg"]
    with pytest.raises(BadSampleError, match=r"k\.clip-003\.jpg: is missing"):
        parsed(members)


def test_version_1_is_still_read() -> None:
    members = dict(encode_members("k", robot_segments(0), {"task": "door"}))
    header = json.loads(members["json"]) | {"schema_version": 1}
    old = parsed(members | {"json": json.dumps(header).encode()})
    assert [type(part) for part in old.segments] == [Image, Image, State, Text, Action]


def test_whose_text_it_is_is_kept() -> None:
    segments = (
        Text(text="go", supervised=False),
        Text(text="a step that fails", supervised=False, assistant=True),
        Text(text="it failed", supervised=False),
        Text(text="another", supervised=True),
    )
    members = dict(encode_members("k", segments, {}))
    entries = json.loads(members["json"])["segments"]
    assert [entry.get("role") for entry in entries] == [None, "assistant", None, None]
    assert parsed(members).segments == segments
    entries[3]["role"] = "assistant"
    with pytest.raises(BadSampleError, match="only an unsupervised one has a role"):
        parsed({"json": json.dumps({"schema_version": 2, "segments": entries}).encode()})
