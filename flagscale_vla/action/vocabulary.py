"""The one owner of special tokens: Qwen2.5-VL's, then the eight that EO-1 adds for states and actions."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

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
