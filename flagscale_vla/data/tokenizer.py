"""Text to token ids: a Hugging Face `tokenizer.json`, or a small byte-level BPE fitted on the shards' own text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from flagscale_vla.action.vocabulary import ACTION_TOKENS, QWEN_TOKENS, add_special_tokens, read_vocabulary
from flagscale_vla.config.checks import check
from flagscale_vla.config.layout import VOCAB_UNIT

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2.5's tokenizer cuts text before merging (its tokenizer.json, `pre_tokenizer`)."""
BYTES = 256


class TextEncoder:
    """Encodes text only: a special token's spelling inside a sample's text stays text, and cannot forge a turn.

    Keeps what it encoded last, for instructions repeat.
    """

    CACHE_SIZE = 4096

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # Not part of tokenizer.json, so it is set wherever a tokenizer arrives, as in a worker process.
        tokenizer.encode_special_tokens = True
        self._cache: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[type[TextEncoder], tuple[Tokenizer]]:
        return TextEncoder, (self.tokenizer,)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; the caller must not change the list."""
        ids = self._cache.get(text)
        if ids is None:
            if len(self._cache) >= self.CACHE_SIZE:
                self._cache.clear()
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            self._cache[text] = ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def byte_level(model: models.Model) -> Tokenizer:
    """A tokenizer that reads and cuts text as Qwen2.5's does, around any BPE model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated", invert=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def fit_tokenizer(texts: Iterable[str], vocab: int, added: tuple[str, ...] = ACTION_TOKENS) -> Tokenizer:
    """A byte-level BPE of at most `vocab` ids, special tokens last. The same texts always give the same ids.

    Args:
        texts: to fit on.
        vocab: rows of the embedding.
        added: the special tokens behind Qwen2.5-VL's.

    Raises:
        ConfigError: `vocab` has no room for the 256 bytes and the special tokens.
    """
    specials = QWEN_TOKENS + added
    least = BYTES + len(specials)
    rule = f"must hold {BYTES} bytes and {len(specials)} special tokens"
    check(vocab >= least, "model.language.vocab", vocab, rule, rows_for(least))
    tokenizer = byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(specials), min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    add_special_tokens(tokenizer, specials)
    return tokenizer


def rows_for(ids: int) -> int:
    """Rows of an embedding that holds so many ids."""
    return -(-ids // VOCAB_UNIT) * VOCAB_UNIT


def load_tokenizer(path: Path, vocab: int, added: tuple[str, ...] = ACTION_TOKENS) -> Tokenizer:
    """A `tokenizer.json`; of the tokens `added` those that it lacks come behind its own.

    Raises:
        ConfigError: there is no such file, or it has more ids than the model has rows.
        ValueError: it is not a tokenizer, or lacks one of Qwen2.5-VL's special tokens.
    """
    key = "data.tokenizer"
    check(path.is_file(), key, path, "must be a tokenizer.json, or `fit`", "fit")
    tokenizer = read_tokenizer(path)
    add_special_tokens(tokenizer, added)
    size = read_vocabulary(tokenizer).size
    check(size <= vocab, "model.language.vocab", vocab, f"{key}={path} has {size} ids", rows_for(size))
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json` as it is.

    Raises:
        ValueError: the file is no such thing.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, so no tokenizer.json: {error}") from error
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{path} is not a tokenizer.json: it has no `model`")
    return Tokenizer.from_str(text)
