"""Build Qwen2.5-VL's `tokenizer.json` from the vocabulary that a package on PyPI carries.

    python tools/build_qwen_tokenizer.py OUTPUT.json [--ranks qwen.tiktoken]

Without `--ranks` the package `dashscope` (Apache-2.0) is downloaded, not installed, and its vocabulary is read. That
file lists tokens with their ranks; a BPE's merges follow: each token is what its own bytes merge to last.
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from flagscale_vla.action.vocabulary import QWEN_PLAIN_TOKENS, QWEN_TOKENS
from flagscale_vla.data.tokenizer import byte_level

PACKAGE = "dashscope==2.0.2"
MEMBER = "dashscope/resources/qwen.tiktoken"


def download_ranks() -> str:
    """The vocabulary's text, out of the package's wheel.

    Raises:
        ValueError: pip cannot fetch the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--retries",
            "1",
            "--no-deps",
            "--dest",
            folder,
            PACKAGE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ValueError(f"pip cannot fetch {PACKAGE}: {done.stderr.strip()[-500:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(MEMBER).decode()


def parse_ranks(text: str) -> dict[bytes, int]:
    """Rank of each token, from lines of base64 and number."""
    pairs = (line.split() for line in text.splitlines() if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary: printable bytes stand for themselves, the
    others, in order, for the letters from U+0100 on (GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that are left of a token's bytes once all lower-ranked merges are done.

    Raises:
        ValueError: more than two are left, so the vocabulary is no BPE's.
    """
    parts, limit = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[place] + parts[place + 1], limit), place) for place in range(len(parts) - 1)]
        rank, place = min(pairs)
        if rank >= limit:
            raise ValueError(f"token {token!r} of rank {limit} is not made by lower-ranked merges")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def build_tokenizer(ranks: dict[bytes, int]) -> Tokenizer:
    """Qwen2.5-VL's tokenizer, its 22 added tokens behind the vocabulary."""
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    merges = [tuple(spell(part) for part in last_merge(token, ranks)) for token in longer]
    vocab = {spell(token): rank for token, rank in ranks.items()}
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocab)
    tokenizer = byte_level(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in QWEN_PLAIN_TOKENS])
    return tokenizer


def main() -> None:
    """Build and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="where tokenizer.json goes")
    parser.add_argument("--ranks", type=Path, help="a qwen.tiktoken that is at hand already")
    arguments = parser.parse_args()
    text = arguments.ranks.read_text(encoding="utf-8") if arguments.ranks else download_ranks()
    tokenizer = build_tokenizer(parse_ranks(text))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.output))
    print(f"{arguments.output}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
