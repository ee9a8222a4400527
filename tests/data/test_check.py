"""The checker finds a planted fault of each kind, in its place and by its rule, and nothing in clean shards."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.data import CacheConfig
from flagscale_vla.data.check import WORDS, Check, check_folder
from flagscale_vla.data.check_rules import quaternions_of
from flagscale_vla.data.shards import PNG_MAGIC, ShardWriter
from flagscale_vla.data.statistics import gather_source, to_json
from flagscale_vla.data.store import LocalStore, open_store
from flagscale_vla.records import Action, Image, RawSample, State, Text
from flagscale_vla.robots.embodiments import Embodiment, save_embodiments
from tests.samples import SAWYER, encode_picture, interleaved_sample, picture, text_sample
from tools.check_shards import main, table

HAND = Embodiment(
    name="hand",
    state=("left_x", "left_qw", "left_qx", "left_qy", "left_qz"),
    action=("left_dx", "left_gripper"),
    cameras=("front",),
    fps=10,
)
EPISODES, FRAMES = 6, 8
Contents = dict[str, bytes]
"""Members of a tar in order."""


def frame(number: int) -> RawSample:
    """A moment of a hand whose state holds a quaternion."""
    generator = np.random.default_rng([number, 9])
    turn = generator.normal(size=4)
    state = np.asarray([generator.normal(), *(turn / np.linalg.norm(turn))], np.float32)
    action = Action(values=generator.normal(size=(4, 2)).astype(np.float32), valid=np.arange(4) < 3, robot="hand")
    segments = (
        Image(name="front", encoded=encode_picture(picture(generator, 28, 28))),
        State(values=state, robot="hand"),
        Text(text="push", supervised=False),
        action,
    )
    return RawSample(key=f"hand-{number // FRAMES:03d}-{number % FRAMES:03d}", segments=segments)


def write_clean(folder: Path) -> None:
    """Two training shards of three episodes each, a question beside them, and a held-out shard."""
    for split, first, count in (("train", 0, 3), ("train", 3, 2), ("heldout", 5, 1)):
        with ShardWriter(folder, split, max_bytes=1 << 40, first=first // 3 if split == "train" else 0) as writer:
            for number in range(first * FRAMES, (first + count) * FRAMES):
                meta = {"task": "push", "episode": number // FRAMES, "frame": 3 * (number % FRAMES)}
                raw = frame(number)
                writer.write(raw.key, raw.segments, meta)
            for raw in (text_sample(first, 9), interleaved_sample(first)) if split == "train" else ():
                writer.write(raw.key, raw.segments, {"episode": 99, "frame": 7})
    save_embodiments(folder, [HAND, SAWYER])


def check(folder: Path, *, processes: int = 1, decode: bool = True) -> Check:
    store = open_store(str(folder), CacheConfig(folder=str(folder / "cache"), max_bytes=1 << 20))
    return check_folder(store, processes=processes, decode=decode)


def rewrite(path: Path, change: Callable[[Contents], Contents | None]) -> None:
    """Change the members of a tar, or their order."""
    with tarfile.open(path) as tar:
        contents = {info.name: file.read() for info in tar if (file := tar.extractfile(info))}
    contents = change(contents) or contents
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents.items():
            # A name with a mark at its end is the same name again.
            info = tarfile.TarInfo(name.rstrip("~"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def array(values: object, kind: type = np.float32) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, kind))
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that claims to have 9,000 x 9,000 pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return PNG_MAGIC + b"".join(chunks)


KEY = "hand-001-002"


def put(name: str, content: bytes) -> Callable[[Contents], Contents]:
    """Give a sample a member, before its JSON."""

    def placed(contents: Contents) -> Contents:
        if f"{KEY}.{name}" in contents:
            return contents | {f"{KEY}.{name}": content}
        names = list(contents)
        names.insert(names.index(f"{KEY}.json"), f"{KEY}.{name}")
        return {other: contents.get(other, content) for other in names}

    return placed


def edit(**changes: object) -> Callable[[Contents], None]:
    """Change keys of a sample's JSON."""
    return lambda c: c.update({f"{KEY}.json": json.dumps(json.loads(c[f"{KEY}.json"]) | changes).encode()})


def edit_segments(change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> Callable[[Contents], None]:
    """Change the reading order of a sample."""

    def work(contents: Contents) -> None:
        header = json.loads(contents[f"{KEY}.json"])
        contents[f"{KEY}.json"] = json.dumps(header | {"segments": change(header["segments"])}).encode()

    return work


def interleave(contents: Contents) -> Contents:
    """The sample's picture comes after the next sample's."""
    names = list(contents)
    names.remove(f"{KEY}.front.jpg")
    names.insert(names.index("hand-001-003.front.jpg") + 1, f"{KEY}.front.jpg")
    return {name: contents[name] for name in names}


def repeat(contents: Contents) -> Contents:
    """The whole sample comes again at the end."""
    return contents | {f"{name}~": content for name, content in contents.items() if name.startswith(KEY)}


def without(contents: Contents) -> Contents:
    """The whole sample is gone."""
    return {name: content for name, content in contents.items() if not name.startswith(KEY)}


ANSWER = {"text": "yes", "supervised": True}
STATE = array([0.1, 1, 0, 0, 0])
PLANTED: dict[str, tuple[str, Callable[[Contents], Contents | None], str, str]] = {
    "missing picture": ("member", lambda c: c.pop(f"{KEY}.front.jpg") and None, f"{KEY}.front.jpg", "is missing"),
    "a stranger": ("member", put("notes.txt", b"hm"), KEY, "notes.txt is in no segment"),
    "broken array": ("member", put("state.npy", b"\x93NUMPY"), f"{KEY}.state.npy", "is not an .npy array"),
    "wrong shape": ("member", put("state.npy", array(np.zeros((2, 5)))), f"{KEY}.state.npy", "not numbers with 1 dim"),
    "wrong valid": ("member", put("valid.npy", array([1, 1], np.bool_)), f"{KEY}.valid.npy", "not bool[4]"),
    "broken json": ("schema", put("json", b"{"), f"{KEY}.json", "is not JSON"),
    "later schema": ("schema", edit(schema_version=9), f"{KEY}.json", "schema_version 1 or 2"),
    "odd segment": ("schema", edit(segments=[{"smell": "sweet"}]), f"{KEY}.json", "is no text, image, video"),
    "no picture's bytes": ("image", put("front.jpg", b"\xff\xd8\xff\x00"), KEY, "front: not a JPEG or PNG"),
    "bomb": ("image", put("front.jpg", bomb()), KEY, "front: 9000x9000 pixels"),
    "narrow picture": ("image", put("front.jpg", encode_picture(np.zeros((1, 201, 3), np.uint8))), KEY, "200 times"),
    "unpaired picture": ("views", edit_segments(lambda s: s[1:]), KEY, "action turn 1 has 0 pictures; robot 'hand'"),
    "picture twice": ("views", edit_segments(lambda s: [s[0], *s]), KEY, "action turn 1 has 2 pictures"),
    "no state": ("state", edit_segments(lambda s: [s[0], *s[2:]]), KEY, "action turn 1 has 0 states"),
    "two states": ("state", edit_segments(lambda s: [s[1], *s]), KEY, "action turn 1 has 2 states"),
    "no question": ("pairing", edit_segments(lambda s: [ANSWER, *s]), KEY, "the assistant speaks first"),
    "no answer": ("pairing", edit_segments(lambda s: [*s, {**ANSWER, "supervised": False}]), KEY, "has no answer"),
    "late beginning": ("valid", put("valid.npy", array([0, 1, 1, 1], np.bool_)), KEY, "begins past the episode's end"),
    "hole": ("valid", put("valid.npy", array([1, 0, 1, 0], np.bool_)), KEY, "goes on after the episode's end"),
    "unknown robot": ("dims", edit(robot="tank"), KEY, "robot 'tank' is not in embodiments.json"),
    "wide action": ("dims", put("action.npy", array(np.zeros((4, 3)))), KEY, "action has 3 dims; robot 'hand' has 2"),
    "NaN": ("finite", put("action.npy", array(np.full((4, 2), np.nan))), KEY, "its action holds NaN or infinity"),
    "jump": ("range", put("action.npy", array([[0, 0], [0, 500], [0, 0], [9e9, 0]])), KEY, "left_gripper=500 is not"),
    "no rotation": ("quaternion", put("state.npy", array([0, 0.5, 0, 0, 0])), KEY, "state left_q has length 0.5"),
    "interleaved": ("key", interleave, KEY, "comes again after other samples"),
    "key twice": ("key", repeat, KEY, "comes again after other samples"),
    "missing frame": ("time", without, "push 1", "frames between 3 and 9 are missing; steps are 3 elsewhere"),
    "frame twice": ("time", edit(frame=3), "push 1", "frame 3 comes twice"),
    "frame off its step": ("time", edit(frame=7), "push 1", "frame 9 follows 7"),
    "leaked episode": (
        "split",
        edit(episode=5, frame=24),
        "push 5",
        "has samples in train-000000.tar of another split",
    ),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_clean(folder)
    return folder


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    for path in clean.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_clean_shards_pass(clean: Path) -> None:
    found = check(clean)
    assert found.findings == ()
    assert (found.shards, found.samples) == (3, EPISODES * FRAMES + 4)
    assert set(found.checked) == set(WORDS) - {"digest"}
    assert found.checked["quaternion"] == EPISODES * FRAMES
    assert found.checked["time"] == EPISODES


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(folder: Path, name: str) -> None:
    rule, change, member, reason = PLANTED[name]
    rewrite(folder / "train-000000.tar", change)
    findings = [finding for finding in check(folder).findings if finding.rule == rule]
    assert findings, name
    assert any(finding.fault.member == member and reason in finding.fault.reason for finding in findings), findings
    assert {finding.fault.shard for finding in findings} <= {"train-000000.tar", "heldout-000000.tar"}


@pytest.mark.parametrize(
    "name",
    [
        "narrow picture",
        "picture twice",
        "two states",
        "no question",
        "hole",
        "NaN",
        "jump",
        "no rotation",
    ],
)
def test_one_fault_breaks_one_rule(folder: Path, name: str) -> None:
    rule, change, _, _ = PLANTED[name]
    rewrite(folder / "train-000000.tar", change)
    (finding,) = check(folder).findings
    assert finding.rule == rule


def test_held_out_numbers_are_held_against_those_trained_on(folder: Path) -> None:
    key = "hand-005-002"
    rewrite(folder / "heldout-000000.tar", lambda c: c.update({f"{key}.state.npy": array([-99, 1, 0, 0, 0])}))
    (finding,) = check(folder).findings
    assert (finding.rule, finding.fault.member) == ("range", key)
    assert "state left_x=-99 is not in [" in finding.fault.reason


def test_a_picture_cut_short_is_found_only_by_decoding(folder: Path) -> None:
    content = encode_picture(picture(np.random.default_rng(0), 112, 112))
    rewrite(folder / "train-000000.tar", put("front.jpg", content[: len(content) // 2]))
    (finding,) = check(folder).findings
    assert (finding.rule, finding.fault.member) == ("image", KEY)
    assert check(folder, decode=False).findings == ()


def test_a_truncated_and_an_empty_shard_are_found(folder: Path) -> None:
    shard = folder / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    (folder / "train-000007.tar").write_bytes(b"")
    findings = [finding for finding in check(folder).findings if finding.rule == "tar"]
    assert [finding.fault.shard for finding in findings] == ["train-000000.tar", "train-000007.tar"]
    assert "truncated" in findings[0].fault.reason


def test_a_shard_without_samples_is_found(folder: Path) -> None:
    with tarfile.open(folder / "train-000007.tar", "w", format=tarfile.USTAR_FORMAT):
        pass
    (finding,) = check(folder).findings
    assert (finding.rule, finding.fault.reason) == ("tar", "holds no sample")


def test_keys_of_two_shards_are_compared(folder: Path) -> None:
    (folder / "train-000007.tar").write_bytes((folder / "train-000001.tar").read_bytes())
    findings = check(folder).findings
    keys = [finding for finding in findings if finding.rule == "key"]
    assert len(keys) == 2 * FRAMES + 2
    assert keys[0].fault.reason == "comes in train-000001.tar too"
    assert "frame 0 comes twice" in {finding.fault.reason for finding in findings}


def test_a_changed_byte_shows_where_digests_are_kept(folder: Path) -> None:
    store = LocalStore(folder)
    content = to_json(store, gather_source(store, "train", 1))
    (folder / "statistics.json").write_text(json.dumps(content))
    assert check(folder).findings == ()
    rewrite(
        folder / "train-000001.tar",
        lambda c: c.update({"hand-003-000.front.jpg": encode_picture(np.zeros((28, 28, 3), np.uint8))}),
    )
    found = check(folder)
    (finding,) = found.findings
    assert (finding.rule, finding.fault.shard) == ("digest", "train-000001.tar")
    assert "statistics.json says" in finding.fault.reason
    assert found.checked["digest"] == 2


def test_statistics_of_other_shards_are_not_used(folder: Path) -> None:
    store = LocalStore(folder)
    content = to_json(store, gather_source(store, "train", 1))
    for kinds in content["robots"].values():
        kinds["state"]["q99"] = kinds["state"]["max"] = kinds["state"]["q01"]
    (folder / "statistics.json").write_text(json.dumps(content))
    assert {finding.rule for finding in check(folder).findings} == {"range"}
    (folder / "train-000001.tar").unlink()
    assert check(folder).findings == ()


def test_processes_change_nothing(folder: Path) -> None:
    for name in ("NaN", "key twice", "leaked episode"):
        rewrite(folder / "train-000000.tar", PLANTED[name][1])
    assert check(folder, processes=2) == check(folder)


def test_quaternions_are_known_by_their_names() -> None:
    assert quaternions_of(HAND.state) == {"left_": [1, 2, 3, 4]}
    assert quaternions_of(("qx", "qy", "qz", "qw", "right_qw", "x")) == {"": [0, 1, 2, 3]}


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The code that the tool ends with."""
    monkeypatch.setattr(sys, "argv", ["check_shards.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_tool_prints_a_table_and_ends_with_1_on_a_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder / "train-000000.tar", PLANTED["NaN"][1])
    assert run_tool(monkeypatch, str(folder), "--processes", "1", "--json", str(folder / "out")) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("finite"))
    assert line.split()[:3] == ["finite", "50", "1"]
    found = json.loads((folder / "out").read_text())
    assert [fault["member"] for fault in found["rules"]["finite"]["faults"]] == [KEY]
    assert list(found["rules"]) == list(WORDS)


def test_the_tool_ends_with_0_on_clean_shards(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_tool(monkeypatch, str(clean), "--processes", "1", "--headers") == 0


def test_the_tool_says_what_it_cannot_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(monkeypatch, str(tmp_path)) == 2
    assert "holds neither train-*.tar nor heldout-*.tar" in capsys.readouterr().err


def test_the_table_says_clean(clean: Path) -> None:
    lines = table(check(clean))
    assert lines[-1] == "clean"
    assert all(line.split()[2] == "0" for line in lines[3:-2])
