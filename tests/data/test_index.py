"""The index: what is good is found, what is bad is named, and neither is looked for twice."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.data import index as index_module
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.index import Index, build_index, open_index
from flagscale_vla.data.read import read_sample
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import Action, RawSample, State
from tests.samples import PANDA, make_recipe, picture_sample, robot_sample, text_sample, write_shards

RAWS = [
    *(robot_sample(seed) for seed in range(12)),
    *(robot_sample(seed, PANDA) for seed in range(20, 24)),
    text_sample(0, 40),
    picture_sample(1, 20),
]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe().with_statistics({})


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change members of a tar, as damage would."""
    with tarfile.open(path) as tar:
        contents = {info.name: file.read() for info in tar if (file := tar.extractfile(info))}
    change(contents)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def array_bytes(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=values.dtype == object)
    return buffer.getvalue()


def with_json(contents: dict[str, bytes], name: str, **changes: object) -> None:
    contents[name] = json.dumps(json.loads(contents[name]) | changes).encode()


def same(first: RawSample, second: RawSample, shard: str) -> bool:
    """Whether two samples are equal, the second read from `shard`."""
    if f"{shard}/{first.key}" != second.key or len(first.segments) != len(second.segments):
        return False
    return all(
        all(
            np.array_equal(object.__getattribute__(ours, field.name), object.__getattribute__(theirs, field.name))
            for field in dataclasses.fields(ours)
        )
        for ours, theirs in zip(first.segments, second.segments, strict=True)
    )


def test_every_sample_is_found_and_read_back(tmp_path: Path, recipe: Recipe) -> None:
    shards = write_shards(tmp_path, RAWS, max_bytes=40_000)
    index = build_index(LocalStore(tmp_path), "train", recipe)
    assert len(shards) > 2
    assert len(index) == len(RAWS)
    assert not index.faults
    for sample, raw in enumerate(RAWS):
        place = index.place(sample)
        assert same(raw, read_sample(index.store, place), place.shard)
        assert index.keys[sample] == raw.key
        assert index.lengths[sample] == recipe.length(raw)
    assert set(index.robots) == {"sawyer", "panda", ""}


def test_statistics_are_those_of_each_robots_frames(tmp_path: Path, recipe: Recipe) -> None:
    write_shards(tmp_path, RAWS, max_bytes=40_000)
    statistics = build_index(LocalStore(tmp_path), "train", recipe).statistics
    assert set(statistics) == {"sawyer", "panda"}
    segments = [segment for raw in RAWS[:12] for segment in raw.segments]
    states = np.stack([segment.values for segment in segments if isinstance(segment, State)]).astype(np.float64)
    actions = np.stack([segment.values[0] for segment in segments if isinstance(segment, Action)]).astype(np.float64)
    assert statistics["sawyer"].state.count == 12
    np.testing.assert_allclose(statistics["sawyer"].state.mean, states.mean(axis=0))
    np.testing.assert_allclose(statistics["sawyer"].action.std, actions.std(axis=0))
    assert statistics["panda"].action.width == 7


def test_it_does_not_depend_on_processes(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, RAWS, max_bytes=40_000)
    alone = build_index(LocalStore(tmp_path), "train", recipe)
    monkeypatch.setattr(index_module, "BYTES_PER_PROCESS", 1)
    together = build_index(LocalStore(tmp_path), "train", recipe, processes=2)
    assert_equal(alone, together)


def assert_equal(first: Index, second: Index) -> None:
    names = [field.name for field in dataclasses.fields(Index) if field.name != "gatherers"]
    for name in [*names, "statistics"]:
        ours, theirs = (index.__getattribute__(name) for index in (first, second))
        equal = np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs
        assert equal, name


def test_it_is_kept_until_something_changes(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path, RAWS, max_bytes=40_000)
    built = open_index(LocalStore(tmp_path), "train", recipe)
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "build_index", lambda *_, **__: pytest.fail("built again"))
        assert_equal(open_index(LocalStore(tmp_path), "train", recipe), built)
    longer = make_recipe(horizon=9).with_statistics({})
    assert (open_index(LocalStore(tmp_path), "train", longer).lengths[:16] == built.lengths[:16] + 1).all()
    shards[0].unlink()
    assert len(open_index(LocalStore(tmp_path), "train", recipe)) < len(built)


def test_an_unwritable_folder_is_named(tmp_path: Path, recipe: Recipe) -> None:
    write_shards(tmp_path, RAWS[:1])
    (tmp_path / ".index").write_text("a file where a folder should be")
    with pytest.raises(
        ValueError, match=r"\.index cannot be written to .*one folder must be writable: .*data\.cache\.folder"
    ):
        open_index(LocalStore(tmp_path), "train", recipe)


def test_an_empty_folder_says_what_makes_shards(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"holds no heldout-\*\.tar; .*record_demo"):
        open_index(LocalStore(tmp_path), "heldout", recipe)


FAULTS: dict[str, tuple[Callable[[dict[str, bytes]], None], str, str]] = {
    "NaN action": (
        lambda c: c.update({"robot-00001.action.npy": array_bytes(np.full((16, 4), np.nan, np.float32))}),
        "robot-00001",
        "its action holds NaN or infinity",
    ),
    "missing key": (lambda c: c.pop("robot-00001.state.npy") and None, "robot-00001.state.npy", "is missing"),
    "missing json": (lambda c: c.pop("robot-00001.json") and None, "robot-00001.json", "is missing"),
    "broken json": (lambda c: c.update({"robot-00001.json": b"{"}), "robot-00001.json", "is not JSON"),
    "json of no text": (lambda c: c.update({"robot-00001.json": b"\xff\xfe"}), "robot-00001.json", "is not JSON"),
    "json too deep": (lambda c: c.update({"robot-00001.json": b"[" * 100_000}), "robot-00001.json", "is not JSON"),
    "half a letter": (
        lambda c: with_json(c, "robot-00001.json", segments=[{"text": "\ud83e", "supervised": True}]),
        "robot-00001.json",
        "half a surrogate pair",
    ),
    "no segments": (
        lambda c: with_json(c, "robot-00001.json", segments=3),
        "robot-00001.json",
        "no list of `segments`",
    ),
    "odd segment": (
        lambda c: with_json(c, "robot-00001.json", segments=[{"video": "a.mp4"}]),
        "robot-00001.json",
        "has a segment that is no text, image, video, state or action",
    ),
    "later schema": (
        lambda c: with_json(c, "robot-00001.json", schema_version=3),
        "robot-00001.json",
        "schema_version 1 or 2",
    ),
    "no robot": (lambda c: with_json(c, "robot-00001.json", robot=None), "robot-00001.json", "names no `robot`"),
    "unknown robot": (
        lambda c: with_json(c, "robot-00001.json", robot="tank"),
        "robot-00001",
        "robot 'tank' is not in embodiments.json",
    ),
    "bad image header": (
        lambda c: c.update({"robot-00001.front.jpg": b"\xff\xd8\xff"}),
        "robot-00001.front.jpg",
        "not a JPEG",
    ),
    "cut array": (
        lambda c: c.update({"robot-00001.action.npy": c["robot-00001.action.npy"][:150]}),
        "robot-00001.action.npy",
        "is not an .npy array",
    ),
    "pickled array": (
        lambda c: c.update({"robot-00001.state.npy": array_bytes(np.asarray([{}], object))}),
        "robot-00001.state.npy",
        "is not an .npy array",
    ),
    "integer state": (
        lambda c: c.update({"robot-00001.state.npy": array_bytes(np.arange(4))}),
        "robot-00001.state.npy",
        "not numbers with 1 dim",
    ),
    "wrong valid": (
        lambda c: c.update({"robot-00001.valid.npy": array_bytes(np.ones(3, bool))}),
        "robot-00001.valid.npy",
        r"is bool[3], not bool[16]",
    ),
    "wrong width": (
        lambda c: c.update({"robot-00001.state.npy": array_bytes(np.zeros(9, np.float32))}),
        "robot-00001",
        "its state has 9 dims; robot 'sawyer' has 4",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_sample_is_quarantined_and_the_others_kept(tmp_path: Path, recipe: Recipe, name: str) -> None:
    damage, member, reason = FAULTS[name]
    (shard,) = write_shards(tmp_path, RAWS[:4])
    rewrite(shard, damage)
    index = build_index(LocalStore(tmp_path), "train", recipe)
    assert index.keys == ("robot-00000", "robot-00002", "robot-00003")
    (fault,) = index.faults
    assert fault.shard == "train-000000.tar"
    assert fault.member == member
    assert reason in fault.reason


def test_a_truncated_tar_keeps_what_is_whole(tmp_path: Path, recipe: Recipe) -> None:
    first, *_ = write_shards(tmp_path, RAWS, max_bytes=40_000)
    whole = build_index(LocalStore(tmp_path), "train", recipe)
    os.truncate(first, first.stat().st_size // 2)
    index = build_index(LocalStore(tmp_path), "train", recipe)
    assert 0 < len(index) < len(whole)
    (fault,) = index.faults
    assert fault.shard == first.name
    assert fault.member.startswith("robot-")
    assert "truncated" in fault.reason
    os.truncate(first, 0)
    assert "0 bytes" in build_index(LocalStore(tmp_path), "train", recipe).faults[0].reason


def test_a_damaged_header_costs_what_follows_and_says_how_much(tmp_path: Path, recipe: Recipe) -> None:
    (shard,) = write_shards(tmp_path, RAWS[:4])
    start = build_index(LocalStore(tmp_path), "train", recipe).place(2).start
    content = bytearray(shard.read_bytes())
    content[start + 3] ^= 1
    shard.write_bytes(content)
    index = build_index(LocalStore(tmp_path), "train", recipe)
    assert index.keys == ("robot-00000", "robot-00001")
    (fault,) = index.faults
    assert fault.member == "robot-00001.json"
    assert fault.reason.endswith(f"{len(content) - start} bytes from there on are not read")


def test_members_that_do_not_lie_together_are_found(tmp_path: Path, recipe: Recipe) -> None:
    (shard,) = write_shards(tmp_path, RAWS[:3])

    def interleave(contents: dict[str, bytes]) -> None:
        contents["robot-00000.state.npy"] = contents.pop("robot-00000.state.npy")

    rewrite(shard, interleave)
    index = build_index(LocalStore(tmp_path), "train", recipe)
    assert index.keys == ("robot-00001", "robot-00002")
    (fault,) = index.faults
    assert fault.member == "robot-00000"
    assert fault.reason == "its members do not lie together but in 2 places"


def test_a_shard_that_changed_since_is_noticed_when_read(tmp_path: Path, recipe: Recipe) -> None:
    (shard,) = write_shards(tmp_path, RAWS[:3])
    store = LocalStore(tmp_path)
    place = build_index(store, "train", recipe).place(1)
    with pytest.raises(BadSampleError, match="cannot be read"):
        read_sample(store, place._replace(start=place.start + 100))
    os.truncate(shard, place.start + place.size // 2)
    with pytest.raises(BadSampleError, match=r"train-000000\.tar/byte \d+: cannot be read"):
        read_sample(store, place)


def test_a_sample_longer_than_a_row_is_named(tmp_path: Path, recipe: Recipe) -> None:
    write_shards(tmp_path, [text_sample(0, 40), text_sample(1, 300)])
    index = build_index(LocalStore(tmp_path), "train", recipe)
    (fault,) = index.too_long(256)
    assert str(fault).startswith("train-000000.tar/text-00001: has ")
    assert "data.pack_length=256 is shorter" in fault.reason
    assert not index.too_long(1024)
