"""Rooms: pixels that workers hand over are those read alone, whatever a row holds, and never ones written over."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.data.index import build_index
from flagscale_vla.data.rooms import ROOMS, TOKEN_BYTES, Lent, Rooms
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
    assert max(sizes) > length * TOKEN_BYTES


def test_rows_with_bad_pictures_anywhere(tmp_path: Path) -> None:
    """Every third sample is bad: first, last and in the midst of rows."""
    raws = [robot_sample(seed) for seed in range(30)]
    compare(tmp_path, [damaged(raw) if number % 3 == 0 else raw for number, raw in enumerate(raws)], 512)


def test_pixels_that_were_written_over_are_refused() -> None:
    rooms = Rooms(workers=2, tokens=4)
    with pytest.raises(RuntimeError, match="worker 1 wrote over pixels"):
        rooms.take(Lent(worker=1, turn=3, start=0, stop=10), pin=False)


def test_too_little_shared_memory_is_refused_before_any_is_taken() -> None:
    free = shutil.disk_usage("/dev/shm").free
    tokens = free // (2 * ROOMS * TOKEN_BYTES)
    with pytest.raises(ConfigError, match=r"data\.workers=3: .* of /dev/shm, .* This would pass: data\.workers=[12]$"):
        Rooms(workers=3, tokens=tokens)
