"""Which strings of FAST's codes stand for a chunk: bytes that are UTF-8 of exactly horizon x dims characters.

FAST writes each coefficient as the character whose code point is the coefficient less the least one, and pairs bytes
of that text. Code points up to 2047 take one byte or two, so a code can end between the halves of a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from flagscale_vla.action.tokenizer import Codes, CodesError, check_row

LARGEST_CHARACTER = 0x7FF
"""The last code point of two bytes: a vocabulary whose coefficients span more than 2048 is not met in practice."""

WHOLE, HALF, WRONG = 0, 1, 2
"""Between two characters, inside one, and past what can be a character."""


def _visible_bytes() -> dict[str, int]:
    """The visible character by which GPT-2's byte-level vocabularies write each byte, to the byte."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _visible_bytes()


def spell(content: bytes) -> str:
    """Bytes as a byte-level vocabulary writes them."""
    characters = {byte: character for character, byte in BYTES.items()}
    return "".join(characters[byte] for byte in content)


def token_bytes(token: str) -> bytes:
    """The inverse of `spell`. A token that it cannot have made stands for its own UTF-8, as `tokenizers` decodes it."""
    if all(character in BYTES for character in token):
        return bytes(BYTES[character] for character in token)
    return token.encode()


class ByteCodes:
    """The bytes of each code, and what they do to a text that stands between or inside characters.

    Args:
        bpe: a byte-level BPE tokenizer.
    """

    def __init__(self, bpe: Tokenizer) -> None:
        added = set(bpe.get_added_tokens_decoder())
        tokens = [bpe.id_to_token(code) for code in range(bpe.get_vocab_size(with_added_tokens=True))]
        self.contents = [
            b"" if token is None or code in added else token_bytes(token) for code, token in enumerate(tokens)
        ]
        """an added token, as a padding token, stands for no byte and is never legal"""
        moves = [[_read(content, start) for content in self.contents] for start in (WHOLE, HALF)]
        table = np.asarray(moves, np.int64)
        self.ends, self.counts = table[..., 0], table[..., 1]
        """i64[2, codes], from between and from inside characters: where a code ends, and characters it completes"""

    @cached_property
    def representable(self) -> NDArray[np.bool_]:
        """bool[2048]: the code points all of whose bytes are codes of their own."""
        singles = {content for content in self.contents if len(content) == 1}
        encoded = [chr(point).encode() for point in range(LARGEST_CHARACTER + 1)]
        return np.asarray([all(bytes([byte]) in singles for byte in content) for content in encoded])

    @cached_property
    def _steps(self) -> list[list[tuple[int, int]]]:
        """(end, characters) by start and code, as plain numbers."""
        return [list(zip(*rows, strict=True)) for rows in zip(self.ends.tolist(), self.counts.tolist(), strict=True)]

    def step(self, start: int, code: int) -> tuple[int, int]:
        """Where a code ends that is read from `start`, and how many characters it completes."""
        return self._steps[start][code]


def _read(content: bytes, start: int) -> tuple[int, int]:
    """Where these bytes end, and how many characters they complete (the Unicode Standard, table 3-7)."""
    state, count = (start, 0) if content else (WRONG, 0)
    for byte in content:
        if state == WHOLE and byte < 0x80:
            count += 1
        elif state == WHOLE and 0xC2 <= byte <= 0xDF:
            state = HALF
        elif state == HALF and 0x80 <= byte <= 0xBF:
            state, count = WHOLE, count + 1
        else:
            return WRONG, 0
    return state, count


class FastGrammar:
    """A `Grammar`: strings of codes that spell exactly `total` coefficients.

    Args:
        codes: the vocabulary.
        total: horizon x dims.
    """

    def __init__(self, codes: ByteCodes, total: int) -> None:
        self.codes, self.total = codes, total
        self._legal: dict[tuple[int, int], Codes] = {}

    @property
    def longest(self) -> int:
        """Two codes for each coefficient, where both halves of its character are codes of their own."""
        has_halves = bool((self.codes.ends[WHOLE] == HALF).any())
        return self.total * (2 if has_halves else 1)

    def legal(self, prefix: Sequence[int]) -> Codes:
        """Codes that may follow: see `Grammar`."""
        state, left = self._follow(prefix)
        if (state, left) not in self._legal:
            self._legal[state, left] = np.flatnonzero(self._fits(self._is_alive, state, left))
        return self._legal[state, left]

    def check(self, codes: Codes) -> None:
        """Refuse a string i64[K] that is not complete.

        Raises:
            CodesError: names the first code that may not stand where it stands, or how many coefficients are missing.
        """
        check_row(codes)
        state, left = self._follow(codes.tolist())
        if left or state != WHOLE:
            raise CodesError(f"{len(codes)} codes break off: {left} of {self.total} coefficients are missing")

    @cached_property
    def _is_alive(self) -> NDArray[np.bool_]:
        """bool[total + 1, 2]: whether a text with so many characters left can be completed, between and inside them."""
        alive = np.zeros((self.total + 1, 2), np.bool_)
        alive[0, WHOLE] = True
        for left in range(1, self.total + 1):
            # Any code read inside a character completes it, so that row depends on fewer left alone.
            for state in (HALF, WHOLE):
                alive[left, state] = self._fits(alive, state, left).any()
        return alive

    def _fits(self, alive: NDArray[np.bool_], state: int, left: int) -> NDArray[np.bool_]:
        """bool[codes]: whether each code leads on to a text that can be completed."""
        ends, counts = self.codes.ends[state], self.codes.counts[state]
        fits = (ends != WRONG) & (counts <= left)
        fits[fits] = alive[left - counts[fits], ends[fits]]
        return fits

    def _follow(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Where a prefix ends, and how many characters are left."""
        state, left = WHOLE, self.total
        for place, code in enumerate(prefix):
            if not 0 <= code < len(self.codes.contents):
                raise CodesError(f"code {code} at place {place} must lie in [0, {len(self.codes.contents)})")
            end, count = self.codes.step(state, code)
            left -= count
            if end == WRONG or left < 0 or not self._is_alive[left, end]:
                raise CodesError(f"code {code} may not stand at place {place}: {left + count} coefficients are left")
            state = end
        return state, left
