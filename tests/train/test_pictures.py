"""What a report shows of a row is what the row holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.data.feed import Feed
from flagscale_vla.data.images import decode, image_grid, resize
from flagscale_vla.data.prepare import open_train_data
from flagscale_vla.data.read import read_sample
from flagscale_vla.records import Action, Image, RawSample
from flagscale_vla.train.page import read_samples, write_samples
from flagscale_vla.train.pictures import View, robot_of, sample_views
from tests.samples import PANDA, SAWYER, picture_sample, robot_sample, text_sample, write_shards
from tests.train.settings import small_run

RAWS = (text_sample(0, 12), robot_sample(1), picture_sample(2, 9), robot_sample(3, PANDA))


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, RAWS)
    run = small_run(folder / "out", f"data.shards={folder}")
    recipe, sources = open_train_data(run.data, run.action, width=8, vocab=512)
    return Feed(sources=sources, recipe=recipe, order=run.data, pack_length=512, seed=0, augment=False)


@pytest.fixture(scope="module")
def views(feed: Feed) -> list[View]:
    index = feed.sources[0].index
    raws = [read_sample(index.store, index.place(number)) for number in range(len(RAWS))]
    samples = [feed.recipe.sample(raw, seed=0, epoch=0, augment=False) for raw in raws]
    return list(sample_views(feed.recipe.pack(samples, 512), feed))


def pictures_of(raw: RawSample, feed: Feed) -> list[np.ndarray]:
    images = [decode("picture", segment.encoded) for segment in raw.segments if isinstance(segment, Image)]
    return [resize(image, image_grid("picture", *image.shape[:2], feed.recipe.image)) for image in images]


def test_each_sample_has_its_own_pictures(views: list[View], feed: Feed) -> None:
    for raw, view in zip(RAWS, views, strict=True):
        assert view.key == f"train-000000.tar/{raw.key}"
        expected = pictures_of(raw, feed)
        assert len(view.images) == len(expected)
        for seen, picture in zip(view.images, expected, strict=True):
            np.testing.assert_array_equal(seen, picture)


def test_text_is_decoded_with_placeholders_counted_and_answers_marked(views: list[View]) -> None:
    text = "".join(span.text for span in views[1].spans)
    assert text.startswith("<|im_start|>system\nYou are a helpful physical assistant.<|im_end|>\n<|im_start|>user\n")
    assert text.count("<|image_pad|>×4") == 2
    assert "<|action_pad|>×8<|action_end|>" in text
    assert [span.text for span in views[1].spans if span.supervised] == [
        "<|action_start|>",
        "<|action_end|><|im_end|>\n",
    ]


def test_actions_are_in_the_robots_own_units(views: list[View]) -> None:
    for raw, view, robot in ((RAWS[1], views[1], SAWYER), (RAWS[3], views[3], PANDA)):
        action = raw.segments[-1]
        assert isinstance(action, Action)
        (chunk,) = view.chunks
        np.testing.assert_allclose(chunk.values, action.values[:8], atol=1e-5)
        np.testing.assert_array_equal(chunk.valid, action.valid[:8])
        assert chunk.names == robot.action
        assert 0.0 < chunk.time < 1.0
    assert views[0].chunks == ()


def test_the_robot_of_a_sample_is_found_by_its_key(feed: Feed) -> None:
    assert [robot_of(feed, f"train-000000.tar/{raw.key}") for raw in RAWS] == ["", "sawyer", "", "panda"]


def test_samples_are_kept_for_the_page(views: list[View], tmp_path: Path) -> None:
    assert read_samples(tmp_path / "kept.json") == []
    write_samples(tmp_path / "kept.json", views)
    kept = read_samples(tmp_path / "kept.json")
    assert [len(entry["images"]) for entry in kept] == [0, 2, 1, 1]  # type: ignore[arg-type]
    assert [len(entry["chunks"]) for entry in kept] == [0, 1, 0, 1]  # type: ignore[arg-type]
