"""The two files of a FAST tokenizer, in the public processor's form: `processor_config.json` and `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tokenizers import Tokenizer

PROCESSOR_FILE = "processor_config.json"
BPE_FILE = "tokenizer.json"
PUBLIC_CLASS = {
    "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
    "processor_class": "UniversalActionProcessor",
}
"""What the public file says besides the settings: which class reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastSettings:
    """What `processor_config.json` says, under the same names."""

    scale: float
    """coefficients are multiplied by it before rounding"""
    vocab_size: int
    """most tokens of the BPE"""
    min_token: int
    """the coefficient of character 0"""
    time_horizon: int | None
    """steps of every chunk; None for any"""
    action_dim: int | None
    """dims of every chunk; None for any"""

    def __post_init__(self) -> None:
        if not (self.scale > 0 and self.vocab_size > 0):
            raise ValueError(f"scale={self.scale}, vocab_size={self.vocab_size}: both must be above zero, as 10, 1024")


def fast_files(bpe: Tokenizer, settings: FastSettings) -> dict[str, bytes]:
    """Both files, by name."""
    config = json.dumps(asdict(settings) | PUBLIC_CLASS, indent=2, sort_keys=True) + "\n"
    return {PROCESSOR_FILE: config.encode(), BPE_FILE: bpe.to_str(pretty=True).encode()}


def read_fast_files(files: Mapping[str, bytes], source: str) -> tuple[Tokenizer, FastSettings]:
    """The inverse of `fast_files`.

    Args:
        files: by name; others than the two are not looked at.
        source: what messages call the place they come from.

    Raises:
        ValueError: one is missing, is not JSON, lacks a setting, or `tokenizer.json` is no byte-level BPE of at most
            `vocab_size` tokens.
    """
    config = _read_object(files, PROCESSOR_FILE, source)
    missing = [field.name for field in fields(FastSettings) if field.name not in config]
    if missing:
        raise ValueError(f"{PROCESSOR_FILE} of {source} lacks {', '.join(missing)}")
    settings = FastSettings(**{field.name: config[field.name] for field in fields(FastSettings)})
    _check_bpe(_read_object(files, BPE_FILE, source), settings, source)
    return Tokenizer.from_str(files[BPE_FILE].decode()), settings


def _read_object(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    if name not in files:
        raise ValueError(f"{name} of {source} is missing: FAST needs {PROCESSOR_FILE} and {BPE_FILE}")
    try:
        content = json.loads(files[name])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} of {source} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} of {source} must be a JSON object")
    return content


def _check_bpe(content: Mapping[str, Any], settings: FastSettings, source: str) -> None:
    """Refuse a vocabulary that is not FAST's, as a language model's."""
    model, cut = content.get("model") or {}, content.get("pre_tokenizer") or {}
    parts = (model.get("type"), cut.get("type"), content.get("normalizer"))
    if parts != ("BPE", "ByteLevel", None) or cut.get("add_prefix_space"):
        raise ValueError(
            f"{BPE_FILE} of {source} is not FAST's: it must be a BPE over ByteLevel without a normalizer or a space in "
            f"front, and has model, pre_tokenizer and normalizer {parts}"
        )
    size = len(model.get("vocab") or {}) + len(content.get("added_tokens") or [])
    if not 0 < size <= settings.vocab_size:
        rule = f"must have from 1 to vocab_size={settings.vocab_size} tokens, as {PROCESSOR_FILE} says"
        raise ValueError(f"{BPE_FILE} of {source} has {size} tokens: {rule}; is it another model's vocabulary?")
