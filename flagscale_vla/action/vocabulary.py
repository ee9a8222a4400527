"""The one owner of special tokens: Qwen2.5-VL's, the eight that EO-1 adds for states and actions, and codes' ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from flagscale_vla.config.checks import check
from flagscale_vla.config.data import CodeIds

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's, in the order of their ids: 151643 to 151656."""

QWEN_PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Qwen2.5-VL's further added tokens, which count as text: 151657 to 151664."""

ACTION_TOKENS = (
    "<|action_start|>",
    "<|action_pad|>",
    "<|action_pass|>",
    "<|action_end|>",
    "<|state_start|>",
    "<|state_pad|>",
    "<|state_end|>",
    "<|vla|>",
)
"""EO-1's, in the order of their ids: 151665 to 151672 behind Qwen2.5-VL's vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Ids of the special tokens that a conversation is laid out with."""

    pad: int
    """`<|endoftext|>`, which fills a row"""
    turn_start: int
    turn_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    """stands where a merged image token goes"""
    video_pad: int
    """stands where one of a film's goes"""
    action_start: int
    action_pad: int
    """stands where a noised action step goes"""
    action_pass: int
    """stands where a clean action step goes, given as context"""
    action_end: int
    state_start: int
    state_pad: int
    """stands where a state goes"""
    state_end: int
    vla: int
    """asks for an action"""
    size: int
    """ids in use: every one is below it"""


FIELDS = {
    "pad": "<|endoftext|>",
    "turn_start": "<|im_start|>",
    "turn_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "video_pad": "<|video_pad|>",
    "action_start": "<|action_start|>",
    "action_pad": "<|action_pad|>",
    "action_pass": "<|action_pass|>",
    "action_end": "<|action_end|>",
    "state_start": "<|state_start|>",
    "state_pad": "<|state_pad|>",
    "state_end": "<|state_end|>",
    "vla": "<|vla|>",
}
"""Field of `Vocabulary`, to the token it looks up."""


def add_special_tokens(tokenizer: Tokenizer, tokens: tuple[str, ...]) -> None:
    """Give each of `tokens` that the tokenizer lacks the next free id, in order."""
    missing = [token for token in tokens if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The special tokens' ids in a tokenizer.

    Raises:
        ValueError: the tokenizer lacks one of them.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True)
    missing = [token for token in FIELDS.values() if token not in ids]
    if missing:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}; a Qwen2.5-VL tokenizer.json has Qwen's own")
    return Vocabulary(size=1 + max(ids.values()), **{field: ids[token] for field, token in FIELDS.items()})


TAIL = range(149_595, 151_643)
"""RoboBrain-X0's ids of codes: the last 2,048 of Qwen2.5's text (its data encoder and its servers)."""
TAIL_BEGIN, TAIL_END = 151_665, 151_667
"""Its markers: servers read codes from the first of them to the second."""
TAIL_SPELLINGS = {TAIL_BEGIN: ("<|action_start|>", "<boa>"), TAIL_END: ("<|action_end|>", "<action_split>")}
"""What may stand at its markers: our own, and those of its tokenizer."""
TAIL_TOKENS = (
    "<|action_start|>",
    "<|action_pad|>",
    "<|action_end|>",
    "<|action_pass|>",
    *ACTION_TOKENS[4:],
)
"""EO-1's tokens in an order that puts our markers at RoboBrain-X0's behind Qwen2.5's vocabulary."""


CODE = "<|action_code_"
"""How the token of a code begins."""


def code_token(code: int) -> str:
    """How a code is spelled."""
    return f"{CODE}{code}|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionIds:
    """Token ids of an action tokenizer's codes: one for each, in the order of the codes."""

    first: int
    num_codes: int

    def tokens(self, codes: NDArray[np.int64]) -> list[int]:
        """Token ids of codes i64[K]."""
        return (codes + self.first).tolist()

    def codes(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """Codes i64[K] of token ids that are codes."""
        return np.asarray(tokens, np.int64) - self.first

    def holds(self, token: int) -> bool:
        """Whether a token id is a code."""
        return self.first <= token < self.first + self.num_codes


def added_tokens(num_codes: int, ids: CodeIds) -> tuple[str, ...]:
    """What a tokenizer gets behind its own tokens, in order: EO-1's, and codes unless they have ids already."""
    if ids is CodeIds.tail:
        return TAIL_TOKENS
    return (*ACTION_TOKENS, *(code_token(code) for code in range(num_codes)))


def extends(tokenizer: Tokenizer, other: Tokenizer, moved: tuple[str, ...]) -> bool:
    """Whether a tokenizer has every id of another, with the same meaning, and codes at most behind them.

    Args:
        tokenizer: the one that may have more.
        other: the one that it may come from.
        moved: tokens that may have other ids.
    """
    ours, theirs = json.loads(tokenizer.to_str()), json.loads(other.to_str())
    our_added, their_added = (
        {token["content"]: token for token in content.pop("added_tokens") if token["content"] not in moved}
        for content in (ours, theirs)
    )
    new = [name for name in our_added if name not in their_added]
    kept = {name: token for name, token in our_added.items() if name in their_added}
    return ours == theirs and kept == their_added and all(name.startswith(CODE) for name in new)


def place_codes(tokenizer: Tokenizer, num_codes: int, ids: CodeIds) -> tuple[ActionIds, Vocabulary]:
    """Where codes have their ids, and the special tokens as they are then.

    Raises:
        ConfigError: RoboBrain-X0's place is asked for, and there are more codes, or the tokenizer is not Qwen2.5's.
        ValueError: the tokenizer lacks a token, or its codes do not follow one another.
    """
    vocabulary = read_vocabulary(tokenizer)
    if ids is CodeIds.appended:
        return ActionIds(first=_appended(tokenizer, num_codes), num_codes=num_codes), vocabulary
    _check_tail(tokenizer, num_codes)
    marked = replace(vocabulary, action_start=TAIL_BEGIN, action_end=TAIL_END)
    return ActionIds(first=TAIL.start, num_codes=num_codes), marked


def _appended(tokenizer: Tokenizer, num_codes: int) -> int:
    ids = tokenizer.get_vocab(with_added_tokens=True)
    spelled = [code_token(code) for code in range(num_codes)]
    lacking = [token for token in spelled if token not in ids]
    if lacking:
        raise ValueError(f"the tokenizer lacks {lacking[0]} and {len(lacking) - 1} more of the {num_codes} codes")
    first = ids[spelled[0]]
    if [ids[token] for token in spelled] != list(range(first, first + num_codes)):
        raise ValueError(f"the tokenizer's ids of {spelled[0]} to {spelled[-1]} do not follow one another")
    return first


def _check_tail(tokenizer: Tokenizer, num_codes: int) -> None:
    key, passes = "action.ids", CodeIds.appended.value
    rule = f"holds {len(TAIL)} codes; the action tokenizer has {num_codes}"
    check(num_codes <= len(TAIL), key, CodeIds.tail.value, rule, passes)
    text = tokenizer.get_vocab_size(with_added_tokens=False)
    rule = f"is Qwen2.5's vocabulary alone, whose text has ids below {TAIL.stop}; this tokenizer's has {text}"
    check(text == TAIL.stop, key, CodeIds.tail.value, rule, passes)
    for marker, spellings in TAIL_SPELLINGS.items():
        found = tokenizer.id_to_token(marker)
        rule = f"wants {' or '.join(spellings)} at id {marker}, where this tokenizer has {found}"
        check(found in spellings, key, CodeIds.tail.value, rule, passes)
