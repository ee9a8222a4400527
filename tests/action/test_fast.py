"""FAST against the public processor's arithmetic, done here with scipy's cosine transform and `tokenizers` alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers

from flagscale_vla.action.fast import Fast, cosines, fit_fast
from flagscale_vla.action.fast_files import FastSettings
from flagscale_vla.action.fast_grammar import ByteCodes, spell, token_bytes
from flagscale_vla.action.rates import fast_at_rate, mean_codes
from flagscale_vla.action.tokenizer import ChunkError, CodesError
from flagscale_vla.action.units import Units
from flagscale_vla.robots.embodiments import Embodiment
from tests.action.chunks import (
    ACTIONS,
    HORIZON,
    ROBOTS,
    make_chunks,
    statistics_of,
    training_chunks,
    units,
)

CLASS = "processing_action_tokenizer.UniversalActionProcessor"


def plain_dct(values: np.ndarray) -> np.ndarray:
    """The orthonormal DCT-II along the first axis: scipy's, or its definition where scipy is not there."""
    try:
        from scipy.fft import dct
    except ImportError:
        steps = np.arange(len(values))
        waves = np.cos(np.pi * np.outer(steps, 2 * steps + 1) / (2 * len(values)))
        factors = np.where(steps == 0, np.sqrt(1 / len(values)), np.sqrt(2 / len(values)))
        return factors[:, None] * (waves @ values)
    return np.asarray(dct(values, axis=0, norm="ortho"))


def rounded_coefficients(robot: str, chunks: np.ndarray, scale: float) -> list[np.ndarray]:
    """Of each chunk, the rounded coefficients in the public order."""
    normalized = units().normalize(robot, chunks).astype(np.float64)
    return [np.around(plain_dct(chunk) * scale).flatten() for chunk in normalized]


def publish(folder: Path, *, scale: float, vocab: int, **changes: Any) -> int:
    """Write a tokenizer as the public code fits and saves one; returns its least coefficient.

    Its alphabet is the first characters themselves, though the BPE reads bytes, and it cuts text by GPT-2's pattern.
    """
    found = [part for robot, chunks in training_chunks().items() for part in rounded_coefficients(robot, chunks, scale)]
    least, most = (int(end(np.concatenate(found))) for end in (np.min, np.max))
    texts = ["".join(map(chr, (part - least).astype(int))) for part in found]
    alphabet = [chr(point) for point in range(most - least + 1)]
    bpe = ByteLevelBPETokenizer()._tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=2, show_progress=False, initial_alphabet=alphabet, max_token_length=10000
    )
    bpe.train_from_iterator(texts, trainer)
    folder.mkdir(exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"scale": scale, "vocab_size": vocab, "min_token": least, "action_dim": None, "time_horizon": None}
    config |= {"processor_class": "UniversalActionProcessor", "auto_map": {"AutoProcessor": CLASS}}
    (folder / "processor_config.json").write_text(json.dumps(config | changes))
    return least


def load_public(folder: Path) -> Fast:
    return Fast.from_public(folder, units().embodiments, units().statistics)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `tokenizer.json`."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("horizon", [1, 2, 7, 16, 50])
def test_the_cosine_transform_is_the_standard_one(horizon: int) -> None:
    values = np.random.default_rng(0).normal(size=(horizon, 5))
    np.testing.assert_allclose(cosines(horizon) @ values, plain_dct(values), atol=1e-12)
    np.testing.assert_allclose(cosines(horizon).T @ cosines(horizon), np.eye(horizon), atol=1e-12)


@pytest.mark.parametrize(("scale", "vocab"), [(2.0, 400), (10.0, 1024), (40.0, 2048)])
def test_public_files_encode_and_decode_as_the_public_code_does(tmp_path: Path, scale: float, vocab: int) -> None:
    least = publish(tmp_path, scale=scale, vocab=vocab)
    fast, bpe = load_public(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert fast.num_codes == bpe.get_vocab_size()
    for robot in ACTIONS:
        # Chunks of the fit: for others the public vocabulary may lack bytes.
        chunks = training_chunks()[robot][:40]
        codes = fast.encode(robot, chunks)
        decoded = fast.decode(robot, codes, HORIZON)
        for string, chunk, part in zip(codes, decoded, rounded_coefficients(robot, chunks, scale), strict=True):
            text = "".join(map(chr, np.maximum(part - least, 0).astype(int)))
            assert string.tolist() == bpe.encode(text).ids
            read = np.array(list(map(ord, bpe.decode(string.tolist(), skip_special_tokens=False)))) + least
            theirs = plain_idct(read.reshape(HORIZON, -1) / scale)
            low, high = units().limits(robot)
            scaled_back = np.clip(units().unnormalize(robot, theirs[None])[0], low, high)
            np.testing.assert_allclose(chunk, scaled_back, atol=1e-6)


def plain_idct(coefficients: np.ndarray) -> np.ndarray:
    """The inverse of `plain_dct`, which is orthogonal."""
    return plain_dct(np.eye(len(coefficients))).T @ coefficients


@pytest.mark.parametrize("scale", [10.0, 40.0])
def test_every_code_stands_for_the_bytes_that_tokenizers_gives_it(tmp_path: Path, scale: float) -> None:
    """Also the alphabet's own entries, which no text is ever encoded to."""
    publish(tmp_path, scale=scale, vocab=2048)
    bpe = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for code, content in enumerate(ByteCodes(bpe).contents):
        assert bpe.decode([code], skip_special_tokens=False) == content.decode(errors="replace")


def test_bytes_are_spelled_as_byte_level_tokenizers_do() -> None:
    letters = [spell(bytes([byte])) for byte in range(256)]
    assert sorted(letters) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert token_bytes("".join(letters)) == bytes(range(256))
    text = "a\n é\x00"
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert spell(text.encode()) == "".join(piece for piece, _ in pieces)


def test_public_files_are_written_back(tmp_path: Path) -> None:
    publish(tmp_path / "public", scale=10.0, vocab=600)
    fast = load_public(tmp_path / "public")
    fast.save(tmp_path / "ours")
    for name in ("tokenizer.json", "processor_config.json"):
        theirs, ours = (json.loads((tmp_path / folder / name).read_text()) for folder in ("public", "ours"))
        assert ours == theirs
    again = load_public(tmp_path / "ours")
    chunks = make_chunks("twin", 20, 6)
    for first, second in zip(fast.encode("twin", chunks), again.encode("twin", chunks), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_coefficient_without_bytes_becomes_the_nearest(tmp_path: Path) -> None:
    """The public code leaves such a character out, and then decodes zeros in place of the chunk."""
    publish(tmp_path, scale=10.0, vocab=600)
    settings = FastSettings(scale=10.0, vocab_size=600, min_token=-2, time_horizon=None, action_dim=None)
    letters = [spell(bytes([byte])) for byte in (0, 1, 2, 4, 9)]
    bpe = Tokenizer(models.BPE(vocab={letter: code for code, letter in enumerate(letters)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    wide = np.linspace(-1, 1, 2000, dtype=np.float32).reshape(500, 1, 4)
    own = Units(ROBOTS, {"sawyer": statistics_of(wide)})
    fast = Fast(bpe, settings, own)
    codes = np.concatenate(fast.encode("sawyer", wide))
    # One step: the coefficient is the scaled value itself, and known are -2, -1, 0, 2 and 7.
    coefficients = np.rint(own.normalize("sawyer", wide).ravel() * 10)
    known = np.array([-2, -1, 0, 2, 7])
    distances = np.abs(coefficients[:, None] - known)
    np.testing.assert_array_equal(distances[np.arange(2000), codes], distances.min(axis=1))


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_rounding_is_the_only_loss(scale: float) -> None:
    """No coefficient is off by more than half a step, and the transform keeps lengths."""
    fast = fit_fast(training_chunks(), units(), scale=scale, vocab_size=1024)
    for robot, chunks in training_chunks().items():
        decoded = fast.decode(robot, fast.encode(robot, chunks), HORIZON)
        error = units().normalize(robot, decoded) - units().normalize(robot, chunks)
        most = 0.5 / scale * np.sqrt(HORIZON * chunks.shape[2])
        assert np.linalg.norm(error.reshape(len(chunks), -1), axis=1).max() <= most + 1e-4


@pytest.mark.parametrize("horizon", [1, 5, 15])
def test_shorter_chunks_than_those_fitted_on_go_through(horizon: int) -> None:
    fast = fit_fast(training_chunks(), units(), scale=20.0, vocab_size=1024)
    chunks = make_chunks("panda", 10, 2)[:, :horizon]
    decoded = fast.decode("panda", fast.encode("panda", chunks), horizon)
    assert np.abs(units().normalize("panda", decoded) - units().normalize("panda", chunks)).mean() < 0.05


def test_codes_can_end_inside_a_character() -> None:
    """Coefficients that span more than 128 take two bytes each, which may be codes of their own."""
    fast = fit_fast(training_chunks(), units(), scale=100.0, vocab_size=600)
    grammar = fast.grammar("sawyer", 1)
    assert grammar.longest == 2 * 4
    halves = [code for code in range(fast.num_codes) if fast.codes.contents[code] == b"\xc4"]
    assert len(halves) == 1
    after = grammar.legal(halves)
    assert len(after)
    assert all(0x80 <= fast.codes.contents[code][0] <= 0xBF for code in after)
    with pytest.raises(CodesError, match=r"code .* may not stand at place 1: 4 coefficients are left"):
        grammar.legal([*halves, *halves])
    # With one coefficient left, its first half may not be followed by a code that completes more than it.
    alone = Fast(fast.bpe, fast.settings, one_dim_units()).grammar("lift", 1)
    assert {int(fast.codes.counts[1, code]) for code in alone.legal(halves)} == {1}


def one_dim_units() -> Units:
    """Of a robot with one dim."""
    lift = Embodiment(name="lift", state=("s",), action=("dz",), cameras=("front",), fps=20)
    return Units({"lift": lift}, {"lift": statistics_of(np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16, 1))})


def test_the_same_chunks_give_the_same_tokenizer(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fit_fast(training_chunks(), units(), scale=10.0, vocab_size=800).save(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_nothing_to_fit_on_and_too_small_a_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="needs chunks to fit on"):
        fit_fast({"sawyer": np.zeros((0, 16, 4), np.float32)}, units(), scale=10.0, vocab_size=800)
    with pytest.raises(ValueError, match=r"vocab_size=20: must hold the \d+ bytes .* This would pass: \d+"):
        fit_fast(training_chunks(), units(), scale=10.0, vocab_size=20)
    with pytest.raises(ValueError, match=r"scale=0\.0, vocab_size=800: both must be above zero"):
        fit_fast(training_chunks(), units(), scale=0.0, vocab_size=800)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda content: content.update(normalizer={"type": "NFC"}), "without a normalizer"),
        (lambda content: content["pre_tokenizer"].update(type="Metaspace"), "Metaspace"),
        (lambda content: content["pre_tokenizer"].update(add_prefix_space=True), "a space in front"),
        (lambda content: content["model"].update(type="WordPiece"), "WordPiece"),
        (lambda content: content["model"].update(vocab={}), "has 0 tokens"),
        (lambda content: content["model"]["vocab"].update({f"x{n}": 2000 + n for n in range(900)}), "another model's"),
    ],
)
def test_a_foreign_vocabulary_is_refused(tmp_path: Path, change: Callable[[Any], object], rule: str) -> None:
    publish(tmp_path, scale=10.0, vocab=600)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=rf"tokenizer\.json of .*{rule}"):
        load_public(tmp_path)


def test_a_vocabulary_of_words_is_refused(tmp_path: Path) -> None:
    """Byte-level and small enough, but without a byte for coefficient 0."""
    publish(tmp_path, scale=10.0, vocab=600)
    words = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json is not FAST's: its vocabulary has no bytes for coefficient 0"
    ):
        load_public(tmp_path)


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    publish(tmp_path, scale=10.0, vocab=600)
    config = tmp_path / "processor_config.json"
    kept = config.read_text()
    for text, rule in (
        ("{", "cannot be read"),
        ("[]", "must be a JSON object"),
        ('{"scale": 1}', "lacks vocab_size, min_"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=rf"processor_config\.json of .* {rule}"):
            load_public(tmp_path)
    config.write_text(kept)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json of .* is missing"):
        load_public(tmp_path)


def test_a_tokenizer_of_one_shape_takes_no_other(tmp_path: Path) -> None:
    publish(tmp_path, scale=10.0, vocab=600, action_dim=7)
    with pytest.raises(ValueError, match=r"robot '\w+' has \d+ action dims, the tokenizer was made for 7"):
        load_public(tmp_path)
    publish(tmp_path, scale=10.0, vocab=600, time_horizon=50)
    fast = load_public(tmp_path)
    with pytest.raises(ChunkError, match="chunks of 16 steps: the tokenizer was made for 50"):
        fast.encode("panda", make_chunks("panda", 1, 0))
    with pytest.raises(CodesError, match="horizon=16: the tokenizer was made for 50"):
        fast.decode("panda", [np.zeros(3, np.int64)], 16)


def test_an_added_token_is_never_legal(tmp_path: Path) -> None:
    publish(tmp_path, scale=10.0, vocab=400, vocab_size=401)
    bpe = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bpe.add_special_tokens([AddedToken("<pad>", special=True)])
    bpe.save(str(tmp_path / "tokenizer.json"))
    fast, pad = load_public(tmp_path), bpe.token_to_id("<pad>")
    assert pad not in fast.grammar("sawyer", HORIZON).legal([])
    with pytest.raises(CodesError, match=f"code {pad} may not stand at place 0"):
        fast.decode("sawyer", [np.array([pad])], HORIZON)


def test_the_scale_for_a_wanted_rate_is_found() -> None:
    fitted = {robot: chunks[::2] for robot, chunks in training_chunks().items()}
    measured = {robot: make_chunks(robot, 40, 12) for robot in ACTIONS}
    codes = []
    for wanted in (20.0, 45.0):
        fast = fast_at_rate(fitted, measured, units(), wanted=wanted, vocab_size=512)
        codes.append(mean_codes(fast, measured))
        assert codes[-1] == pytest.approx(wanted, rel=0.02)
    assert codes[0] < codes[1]
