"""What must hold of every kind of action tokenizer: strings, chunks, ranges and errors."""

from __future__ import annotations

import numpy as np
import pytest

from flagscale_vla.action.tokenizer import ActionTokenizer, ChunkError, CodesError
from tests.action.chunks import ACTIONS, HORIZON, constant_chunks, constant_units, make_chunks, training_chunks, units
from tests.action.kinds import KINDS
from tools.fuzz_codes import fuzz


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> ActionTokenizer:
    return KINDS[request.param](training_chunks(), units())


def test_random_strings_decode_or_are_refused(tokenizer: ActionTokenizer) -> None:
    found = fuzz(tokenizer, 400, HORIZON, seed=0)
    assert found.is_clean, found.line


@pytest.mark.parametrize("robot", ACTIONS)
def test_what_is_encoded_is_complete_and_close(tokenizer: ActionTokenizer, robot: str) -> None:
    chunks = make_chunks(robot, 50, 9)
    codes = tokenizer.encode(robot, chunks)
    grammar = tokenizer.grammar(robot, HORIZON)
    for string in codes:
        assert string.dtype == np.int64
        assert len(grammar.legal(string.tolist())) == 0
        assert len(string) <= grammar.longest
        for place in range(len(string)):
            assert string[place] in grammar.legal(string[:place].tolist())
    decoded = tokenizer.decode(robot, codes, HORIZON)
    assert decoded.dtype == np.float32
    error = np.abs(units().normalize(robot, decoded) - units().normalize(robot, chunks)).mean()
    assert error < 0.1


@pytest.mark.parametrize("robot", ["nobody", ""])
def test_an_unknown_robot_is_refused_everywhere(tokenizer: ActionTokenizer, robot: str) -> None:
    rule = rf"robot='{robot}' was not fitted; known are \['panda', 'rover', 'sawyer', 'twin'\]"
    with pytest.raises(ChunkError, match=rule):
        tokenizer.encode(robot, make_chunks("panda", 1, 0))
    with pytest.raises(ChunkError, match=rule):
        tokenizer.decode(robot, [np.zeros(3, np.int64)], HORIZON)
    with pytest.raises(ChunkError, match=rule):
        tokenizer.grammar(robot, HORIZON)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(tokenizer: ActionTokenizer, number: float) -> None:
    chunks = make_chunks("sawyer", 3, 0)
    chunks[1, 5, 2] = number
    with pytest.raises(ChunkError, match=rf"chunk 1 of robot 'sawyer' has dz={number} at step 5: not finite"):
        tokenizer.encode("sawyer", chunks)


def test_another_width_or_no_step_is_refused(tokenizer: ActionTokenizer) -> None:
    with pytest.raises(
        ChunkError, match=r"'sawyer' has 4 action dims \['dx', 'dy', 'dz', 'gripper'\], the chunks have 7"
    ):
        tokenizer.encode("sawyer", make_chunks("panda", 1, 0))
    with pytest.raises(ChunkError, match="H at least 1"):
        tokenizer.encode("sawyer", np.zeros((2, 0, 4), np.float32))
    with pytest.raises(ChunkError, match="H at least 1"):
        tokenizer.encode("sawyer", np.zeros((16, 4), np.float32))
    with pytest.raises(CodesError, match="horizon=0: must be at least 1"):
        tokenizer.grammar("sawyer", 0)


def test_no_chunk_is_no_string(tokenizer: ActionTokenizer) -> None:
    assert tokenizer.encode("twin", np.zeros((0, HORIZON, 14), np.float32)) == []
    assert tokenizer.decode("twin", [], HORIZON).shape == (0, HORIZON, 14)


def test_chunks_past_the_training_range_come_back_at_its_edge(tokenizer: ActionTokenizer) -> None:
    low, high = units().limits("rover")
    far = make_chunks("rover", 4, 3) * 1e6
    decoded = tokenizer.decode("rover", tokenizer.encode("rover", far), HORIZON)
    assert (decoded >= low).all()
    assert (decoded <= high).all()


def test_an_episode_of_one_frame(tokenizer: ActionTokenizer) -> None:
    """A chunk that repeats its one step: nothing moves, and so it comes back nearly still."""
    chunks = np.repeat(make_chunks("panda", 20, 4)[:, :1], HORIZON, axis=1)
    decoded = tokenizer.decode("panda", tokenizer.encode("panda", chunks), HORIZON)
    error = units().normalize("panda", decoded) - units().normalize("panda", chunks)
    assert np.abs(error).mean() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_dim_comes_back_exactly(kind: str) -> None:
    chunks = constant_chunks()
    tokenizer = KINDS[kind]({"panda": chunks}, constant_units())
    decoded = tokenizer.decode("panda", tokenizer.encode("panda", chunks), HORIZON)
    assert (decoded[..., 2] == np.float32(0.25)).all()
    assert np.isfinite(decoded).all()
    # The dim that moved once stays within what it did.
    assert 0.0 <= decoded[..., 3].min() <= decoded[..., 3].max() <= 0.5
    moved = chunks + np.float32(3.0)
    assert (tokenizer.decode("panda", tokenizer.encode("panda", moved), HORIZON)[..., 2] == np.float32(0.25)).all()


def test_codes_of_no_alphabet_are_refused(tokenizer: ActionTokenizer) -> None:
    string = tokenizer.encode("sawyer", make_chunks("sawyer", 1, 0))[0]
    grammar = tokenizer.grammar("sawyer", HORIZON)
    for code in (-1, tokenizer.num_codes, 2**40):
        wrong = np.concatenate([string[:2], [code], string[3:]])
        with pytest.raises(CodesError, match=rf"code {code} at place 2 must lie in \["):
            tokenizer.decode("sawyer", [string, wrong], HORIZON)
        with pytest.raises(CodesError, match="must lie in"):
            grammar.legal(wrong.tolist())
    for wrong in (string[:-1], string[:0], np.concatenate([string, string]), string.astype(np.float64), string[None]):
        with pytest.raises(CodesError):
            tokenizer.decode("sawyer", [wrong], HORIZON)
    with pytest.raises(CodesError):
        grammar.legal([*string.tolist(), 0])
