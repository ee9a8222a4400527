"""Rooms: rows that workers hand over are those read alone, whatever they hold, and none is written over while held."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.data.index import build_index
from flagscale_vla.data.rooms import PIXEL_BYTES, READ_AHEAD, SPARE, TOKEN_BYTES, Laid, Room, Rooms
from flagscale_vla.data.store import LocalStore
from flagscale_vla.records import RawSample, Text, Video
from tests.data.test_loader import assert_same, damaged, opened
from tests.samples import encode_picture, make_feed, make_recipe, picture, robot_sample, write_shards


def film(seed: int) -> RawSample:
    """Many frames and few words: almost all of its tokens are pixels, two frames behind each."""
    generator = np.random.default_rng(seed)
    frames = tuple(encode_picture(picture(generator, 28, 28)) for _ in range(400))
    texts = (Text(text="what happens?", supervised=False), Text(text="it opens", supervised=True))
    return RawSample(key=f"film-{seed:05d}", segments=(Video(name="clip", frames=frames, fps=2.0), *texts))


def compare(folder: Path, raws: list[RawSample], length: int) -> list[int]:
    """Rows read by two workers against rows read here; bytes of pixels of each."""
    write_shards(folder, raws)
    recipe = make_recipe()
    index = build_index(LocalStore(folder), "train", recipe)
    feed = make_feed(index, recipe.with_statistics(index.statistics), length, seed=3, augment=False)
    taken = []
    for workers in (0, 2):
        with opened(feed, workers=workers, bad_share=1.0) as loader:
            taken.append(loader.take(16))
    assert_same(*taken)
    return [batch.pixels.numel() for batch in taken[0]]


def test_a_row_of_films_may_be_larger_than_a_room(tmp_path: Path) -> None:
    length = 300
    sizes = compare(tmp_path, [film(seed) for seed in range(3)], length)
    assert max(sizes) > length * TOKEN_BYTES > length * PIXEL_BYTES


def test_rows_with_bad_pictures_anywhere(tmp_path: Path) -> None:
    """Every third sample is bad: first, last and in the midst of rows."""
    raws = [robot_sample(seed) for seed in range(30)]
    compare(tmp_path, [damaged(raw) if number % 3 == 0 else raw for number, raw in enumerate(raws)], 512)


def left(rooms: Rooms, number: int) -> tuple[int, dict[str, Laid]]:
    """A row that holds its own number, left in a room as a worker does."""
    room = rooms.lend()
    assert room is not None
    laid = Room(rooms.memory[room]).lay({"tokens": torch.full((5,), number), "time": torch.full((), number / 2)})
    assert laid is not None
    return room, laid


def in_room(tensor: torch.Tensor, length: int) -> bool:
    """Whether its storage is a whole room for rows of so many tokens."""
    return tensor.untyped_storage().nbytes() == length * TOKEN_BYTES


def test_a_room_is_free_when_nothing_of_its_row_is_held() -> None:
    rooms = Rooms(workers=1, tokens=4)
    others = [rooms.lend() for _ in range(READ_AHEAD + SPARE - 2)]
    room, laid = left(rooms, 7)
    part = rooms.take(room, laid, pin=False)["tokens"][2:4]
    assert len(others) == READ_AHEAD + 1
    assert in_room(part, 4)
    last = rooms.lend()
    assert last not in {room, None}
    del part
    assert rooms.lend() == room


def test_a_row_that_would_leave_no_room_is_copied() -> None:
    rooms = Rooms(workers=1, tokens=4)
    held = [rooms.take(*left(rooms, number), pin=False) for number in range(3 * (READ_AHEAD + SPARE))]
    assert [row["tokens"].tolist() for row in held] == [[number] * 5 for number in range(len(held))]
    assert [row["time"].item() for row in held] == [number / 2 for number in range(len(held))]
    assert sum(in_room(row["tokens"], 4) for row in held) == READ_AHEAD + SPARE - 1


def test_a_row_in_page_locked_memory_holds_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    rooms = Rooms(workers=1, tokens=4)
    held = [rooms.take(*left(rooms, number), pin=True) for number in range(2 * (READ_AHEAD + SPARE))]
    assert [row["tokens"].tolist() for row in held] == [[number] * 5 for number in range(len(held))]
    assert {rooms.lend() for _ in range(READ_AHEAD + SPARE)} == set(range(READ_AHEAD + SPARE))


def test_what_does_not_fit_is_left_elsewhere() -> None:
    room = Room(torch.empty(100, dtype=torch.uint8))
    assert room.lay({"tokens": torch.ones(4, dtype=torch.int64), "time": torch.ones(10)}) is None
    assert room.lay({"tokens": torch.ones(4, dtype=torch.int64), "time": torch.ones(9)}) is not None
    assert Room(torch.empty(0, dtype=torch.uint8)).lay({"time": torch.ones(1)}) is None


@pytest.mark.parametrize(("rooms", "most"), [(6, 0), (7, 1), (10, 1), (14, 2)])
def test_too_little_shared_memory_is_refused_before_any_is_taken(
    rooms: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/dev/shm")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=rooms * 1000 * TOKEN_BYTES + 1))
    passes = rf"data\.workers=3: .* of /dev/shm, .* This would pass: data\.workers={most}$"
    with pytest.raises(ConfigError, match=passes):
        Rooms(workers=3, tokens=1000)
    Rooms(workers=most, tokens=1000)
