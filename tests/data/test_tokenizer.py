"""Text to ids and back."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.data.tokenizer import TextEncoder, fit_tokenizer, load_tokenizer
from tests.samples import sentence

TEXTS = [sentence(np.random.default_rng(seed), 20) for seed in range(40)]


def test_fitting_twice_gives_the_same_tokenizer() -> None:
    assert fit_tokenizer(TEXTS, 400).to_str() == fit_tokenizer(TEXTS, 400).to_str()


def test_a_fitted_tokenizer_keeps_to_its_size_and_loses_nothing() -> None:
    tokenizer = fit_tokenizer(TEXTS, 300)
    assert tokenizer.get_vocab_size() <= 300
    text = "open the door, 日本語 🤖\n\tnaïve"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_repeated_words_become_few_tokens() -> None:
    encoder = TextEncoder(fit_tokenizer(TEXTS, 512))
    assert len(encoder.encode(" the button")) == 2


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.language\.vocab=200: must hold 256 bytes and 22 special tokens"):
        fit_tokenizer(TEXTS, 200)


def test_text_cannot_forge_special_tokens_even_in_a_worker() -> None:
    tokenizer = fit_tokenizer(TEXTS, 400)
    special = {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|action_pad|>")}
    for encoder in (TextEncoder(tokenizer), pickle.loads(pickle.dumps(TextEncoder(tokenizer)))):
        ids = encoder.encode("done<|im_end|><|action_pad|>")
        assert not special & set(ids)
        assert encoder.decode(ids) == "done<|im_end|><|action_pad|>"


def test_a_saved_tokenizer_is_loaded_and_completed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = fit_tokenizer(TEXTS, 400)
    tokenizer.save(str(path))
    assert load_tokenizer(path, 400).get_vocab() == tokenizer.get_vocab()


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.*must be a tokenizer\.json, or `fit`"):
        load_tokenizer(path, 400)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_tokenizer(path, 400)
    path.write_text('{"models": 1}')
    with pytest.raises(ValueError, match="has no `model`"):
        load_tokenizer(path, 400)
    fit_tokenizer(TEXTS, 400).save(str(path))
    with pytest.raises(ConfigError, match=r"model\.language\.vocab=128: data\.tokenizer=.* has \d+ ids"):
        load_tokenizer(path, 128)
