"""FAST (Pertsch et al., 2025, arXiv 2501.09747): cosine coefficients over time, rounded, spelled as text, byte pairs.

A chunk's DCT-II (orthonormal) is multiplied by a scale and rounded. Row by row, low frequencies first, each coefficient
becomes a character, and a byte-level BPE shortens the text. Both files are those of the public processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from flagscale_vla.action.fast_files import BPE_FILE, FastSettings, fast_files, read_fast_files
from flagscale_vla.action.fast_grammar import LARGEST_CHARACTER, ByteCodes, FastGrammar, spell
from flagscale_vla.action.stored import Stored, write_stored
from flagscale_vla.action.tokenizer import ChunkError, Codes, CodesError, Floats
from flagscale_vla.action.units import Units
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.statistics import RobotStatistics


class Fast:
    """An `ActionTokenizer`.

    Args:
        bpe: a byte-level BPE tokenizer.
        settings: how coefficients become characters.
        units: the robots.

    Raises:
        ValueError: the vocabulary is not one of coefficients, or is made for actions of another width.
    """

    kind = "fast"

    def __init__(self, bpe: Tokenizer, settings: FastSettings, units: Units) -> None:
        self.bpe, self.settings, self.units = bpe, settings, units
        self.embodiments, self.statistics = units.embodiments, units.statistics
        self.codes = ByteCodes(bpe)
        self._grammars: dict[int, FastGrammar] = {}
        self.num_codes = len(self.codes.contents)
        self._check()

    def encode(self, robot: str, values: Floats, start: Floats | None = None) -> list[Codes]:
        """Strings of codes of chunks: see `ActionTokenizer`.

        A coefficient that the vocabulary has no bytes for becomes the nearest that it has.
        """
        normalized = self.units.normalize(robot, values)
        if not self._takes(values.shape[1]):
            raise ChunkError(f"chunks of {values.shape[1]} steps: {self._horizon_rule}")
        characters = _coefficients(normalized, self.settings.scale) - self.settings.min_token
        texts = _texts(self._nearest[np.clip(characters, 0, LARGEST_CHARACTER)])
        found = self.bpe.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int64) for encoding in found]

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int, start: Floats | None = None) -> Floats:
        """Chunks of strings of codes: see `ActionTokenizer`."""
        grammar = self.grammar(robot, horizon)
        for string in codes:
            grammar.check(string)
        text = b"".join(self.codes.contents[code] for string in codes for code in string.tolist())
        characters = np.frombuffer(text.decode().encode("utf-32-le"), np.uint32).astype(np.float64)
        coefficients = characters.reshape(len(codes), horizon, self.units.dims(robot)) + self.settings.min_token
        return self.units.unnormalize(robot, cosines(horizon).T @ coefficients / self.settings.scale)

    def grammar(self, robot: str, horizon: int) -> FastGrammar:
        """What `decode` takes: see `ActionTokenizer`."""
        total = self.units.dims(robot) * horizon
        if not self._takes(horizon):
            raise CodesError(f"horizon={horizon}: {self._horizon_rule}")
        if total not in self._grammars:
            self._grammars[total] = FastGrammar(self.codes, total)
        return self._grammars[total]

    def save(self, folder: Path) -> None:
        """Write what `load_action_tokenizer` reads; the public processor's two files are part of it."""
        files = fast_files(self.bpe, self.settings)
        write_stored(folder, Stored(kind=self.kind, config={}, units=self.units, files=files))

    @staticmethod
    def from_stored(stored: Stored) -> Fast:
        """What `save` wrote.

        Raises:
            ValueError: a file is missing, or as for the class.
        """
        bpe, settings = read_fast_files(stored.files, "the action tokenizer")
        return Fast(bpe, settings, stored.units)

    @staticmethod
    def from_public(
        folder: Path, embodiments: Mapping[str, Embodiment], statistics: Mapping[str, RobotStatistics]
    ) -> Fast:
        """A tokenizer in the public processor's form, as `physical-intelligence/fast`, for robots of ours.

        Raises:
            ValueError: a file is missing, or as for the class.
        """
        files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
        bpe, settings = read_fast_files(files, str(folder))
        return Fast(bpe, settings, Units(embodiments, statistics))

    @cached_property
    def _nearest(self) -> NDArray[np.int64]:
        """i64[2048], of each character the nearest that the vocabulary has bytes for."""
        known = np.flatnonzero(self.codes.representable)
        wanted = np.arange(LARGEST_CHARACTER + 1)
        return known[np.abs(wanted[:, None] - known).argmin(axis=1)]

    def _takes(self, horizon: int) -> bool:
        return horizon >= 1 and self.settings.time_horizon in (None, horizon)

    @property
    def _horizon_rule(self) -> str:
        fixed = self.settings.time_horizon
        return "must be at least 1" if fixed is None else f"the tokenizer was made for {fixed}"

    def _check(self) -> None:
        zero = -self.settings.min_token
        if not (0 <= zero <= LARGEST_CHARACTER and self.codes.representable[zero]):
            raise ValueError(
                f"{BPE_FILE} is not FAST's: its vocabulary has no bytes for coefficient 0 (min_token={-zero})"
            )
        for name, robot in self.embodiments.items():
            if self.settings.action_dim not in (None, len(robot.action)):
                dims = f"{len(robot.action)} action dims"
                raise ValueError(f"robot {name!r} has {dims}, the tokenizer was made for {self.settings.action_dim}")


def fit_fast(chunks: Mapping[str, Floats], units: Units, *, scale: float, vocab_size: int) -> Fast:
    """FAST fitted on chunks f32[N, H, A0] in own units, by robot.

    Args:
        chunks: to fit on. Coefficients past theirs are cut off, as longer chunks have them.
        units: of the robots that have chunks, and of others that the tokenizer is to know.
        scale: coefficients are multiplied by it before rounding; the public tokenizer has 10.
        vocab_size: most codes; the public tokenizer has 2048.

    Raises:
        ValueError: no chunk, or `vocab_size` has no room for the bytes that spell every coefficient.
        ChunkError: a chunk is not its robot's.
    """
    filled = {robot: values for robot, values in chunks.items() if len(values)}
    if not filled:
        raise ValueError("FAST needs chunks to fit on, and was given none")
    rounded = [_coefficients(units.normalize(robot, values), scale) for robot, values in filled.items()]
    # Zero must have a character, even where all coefficients lie on one side of it.
    least = min(0, *(int(part.min()) for part in rounded))
    most = max(0, *(int(part.max()) for part in rounded))
    texts = (text for part in rounded for text in _texts(part - least))
    bpe = _train(texts, vocab_size, most - least)
    settings = FastSettings(scale=scale, vocab_size=vocab_size, min_token=least, time_horizon=None, action_dim=None)
    return Fast(bpe, settings, units)


def _train(texts: Iterable[str], vocab_size: int, span: int) -> Tokenizer:
    """A byte-level BPE over whole chunks, of pairs that are met at least twice.

    The public fit first cuts the text by GPT-2's pattern, so that no pair joins what by chance are letters and digits.
    That costs a few percent more codes, and half more where zero is a space. A loaded file's own cut is followed.
    """
    alphabet = sorted({byte for point in range(span + 1) for byte in chr(point).encode()})
    if len(alphabet) > vocab_size:
        rule = f"must hold the {len(alphabet)} bytes that spell coefficients, which span {span}"
        raise ValueError(f"vocab_size={vocab_size}: {rule}. This would pass: {2 * len(alphabet)}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    bpe.decoder = decoders.ByteLevel()
    letters = [spell(bytes([byte])) for byte in alphabet]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False, initial_alphabet=letters)
    bpe.train_from_iterator(texts, trainer)
    return bpe


def _coefficients(normalized: Floats, scale: float) -> NDArray[np.int64]:
    """Rounded cosine coefficients of scaled chunks [N, H, A0], i64[N, H * A0], those of one frequency side by side.

    They are kept within 1023, so that all have characters.
    """
    rounded = np.rint(cosines(normalized.shape[1]) @ normalized * scale)
    limited = np.clip(rounded, -(LARGEST_CHARACTER // 2), LARGEST_CHARACTER // 2)
    return limited.reshape(len(normalized), normalized.shape[1] * normalized.shape[2]).astype(np.int64)


@cache
def cosines(horizon: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II, f64[H, H]: coefficients of a chunk are this times its steps."""
    steps = np.arange(horizon)
    waves = np.cos(np.pi / horizon * (steps + 0.5) * steps[:, None]) * np.sqrt(2.0 / horizon)
    waves[0] /= np.sqrt(2.0)
    return waves


def _texts(characters: NDArray[np.int64]) -> list[str]:
    """Rows of code points i64[N, K] as N texts of K characters."""
    width = characters.shape[1]
    text = characters.astype("<u4").tobytes().decode("utf-32-le")
    return [text[start : start + width] for start in range(0, len(text), width)]
