"""From a folder of shards to a recipe and an index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.data import CacheConfig, DataConfig
from flagscale_vla.config.mixture import TooLong, Weigh
from flagscale_vla.data import prepare
from flagscale_vla.data.index import open_index
from flagscale_vla.data.prepare import open_train_data
from flagscale_vla.data.store import LocalStore
from tests.samples import action_config, image_config, mixed_samples, robot_sample, text_sample, write_shards


def settings(folder: Path, tokenizer: str = "fit") -> DataConfig:
    return DataConfig(
        shards=str(folder),
        cache=CacheConfig(folder=str(folder / "cache"), max_bytes=1 << 20),
        tokenizer=tokenizer,
        system_prompt="You are a helpful physical assistant.",
        image=image_config(),
        pack_length=1024,
        workers=0,
        max_bad_share=0.0,
        max_bad_shard_share=0.0,
        mixture={},
        weigh=Weigh.samples,
        stages=[],
        epochs=0,
        era=65536,
        pool=64,
        too_long=TooLong.refuse,
    )


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, mixed_samples(0, 30))
    recipe, (source,) = open_train_data(settings(tmp_path), action_config(), width=8, vocab=512)
    monkeypatch.setattr(prepare, "read_texts", lambda _: pytest.fail("read again"))
    again, (same,) = open_train_data(settings(tmp_path), action_config(), width=8, vocab=512)
    assert again.tokenizer.to_str() == recipe.tokenizer.to_str()
    assert again.statistics == recipe.statistics == source.index.statistics
    assert same.index.keys == source.index.keys
    assert recipe.vocabulary.size <= 512


def test_training_actions_come_out_at_unit_scale(tmp_path: Path) -> None:
    write_shards(tmp_path, [robot_sample(seed) for seed in range(50)])
    recipe, _ = open_train_data(settings(tmp_path), action_config(), width=8, vocab=512)
    samples = [recipe.sample(robot_sample(seed), seed=0, epoch=0, augment=False) for seed in range(50)]
    first_actions = np.stack([sample.actions[0, 0, :4].numpy() for sample in samples])
    np.testing.assert_allclose(first_actions.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(first_actions.std(axis=0), 1, atol=1e-5)


def test_the_heldout_split_is_read_with_the_recipe_of_training(tmp_path: Path) -> None:
    write_shards(tmp_path, [robot_sample(seed) for seed in range(10)])
    write_shards(tmp_path, [robot_sample(seed) for seed in range(10, 14)], "heldout")
    recipe, (source,) = open_train_data(settings(tmp_path), action_config(), width=8, vocab=512)
    heldout = open_index(LocalStore(tmp_path), "heldout", recipe)
    assert (len(source.index), len(heldout)) == (10, 4)


def test_text_needs_no_robots(tmp_path: Path) -> None:
    write_shards(tmp_path, [text_sample(seed, 40) for seed in range(5)])
    os.remove(tmp_path / "embodiments.json")
    recipe, (source,) = open_train_data(settings(tmp_path), action_config(), width=8, vocab=512)
    assert len(source.index) == 5
    assert recipe.statistics == {}


def test_a_tokenizer_file_is_used_as_it_is(tmp_path: Path) -> None:
    write_shards(tmp_path, [text_sample(seed, 40) for seed in range(5)])
    fitted, _ = open_train_data(settings(tmp_path), action_config(), width=8, vocab=512)
    path = tmp_path / "other.json"
    fitted.tokenizer.save(str(path))
    recipe, _ = open_train_data(settings(tmp_path, str(path)), action_config(), width=8, vocab=512)
    assert recipe.tokenizer.get_vocab() == fitted.tokenizer.get_vocab()


def test_robots_without_their_description_are_told_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, [robot_sample(seed) for seed in range(3)])
    (tmp_path / "embodiments.json").unlink()
    with pytest.raises(ValueError, match=r"embodiments\.json is missing"):
        open_train_data(settings(tmp_path), action_config(), width=8, vocab=512)
