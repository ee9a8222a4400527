"""Tokenizers on disk: what is saved is loaded, and what was damaged or swapped is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.stored import ACTION_TOKENIZER_FILE, DIGESTS, content_digest
from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.action.units import Units
from tests.action.chunks import ACTIONS, HORIZON, ROBOTS, make_chunks, statistics_of, training_chunks, units
from tests.action.kinds import KINDS


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> ActionTokenizer:
    return KINDS[request.param](training_chunks(), units())


def change(folder: Path, *, resigned: bool, **entries: Any) -> None:
    """Change entries of the JSON; `resigned` gives it a digest that fits again."""
    path = folder / ACTION_TOKENIZER_FILE
    content = json.loads(path.read_text()) | entries
    digests = content.pop(DIGESTS)
    if resigned:
        digests[ACTION_TOKENIZER_FILE] = content_digest(content)
    path.write_text(json.dumps(content | {DIGESTS: digests}))


def test_what_is_saved_is_loaded(tokenizer: ActionTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_action_tokenizer(tmp_path / "new" / "folder")
    assert type(loaded) is type(tokenizer)
    assert (loaded.kind, loaded.num_codes) == (tokenizer.kind, tokenizer.num_codes)
    assert loaded.embodiments == tokenizer.embodiments
    assert loaded.statistics == tokenizer.statistics
    for robot in ACTIONS:
        chunks = make_chunks(robot, 20, 5)
        codes = tokenizer.encode(robot, chunks)
        for ours, theirs in zip(codes, loaded.encode(robot, chunks), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(tokenizer.decode(robot, codes, HORIZON), loaded.decode(robot, codes, HORIZON))


def test_saving_again_gives_the_same_bytes(tokenizer: ActionTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one")
    load_action_tokenizer(tmp_path / "one").save(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_every_file_is_guarded(tokenizer: ActionTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        if path.name == ACTION_TOKENIZER_FILE:
            continue
        kept = path.read_bytes()
        path.write_bytes(kept[:-3] + b"x" + kept[-2:])
        with pytest.raises(ValueError, match=rf"{path.name} is damaged or was changed"):
            load_action_tokenizer(tmp_path)
        path.unlink()
        with pytest.raises(ValueError, match=rf"{path.name} is missing"):
            load_action_tokenizer(tmp_path)
        path.write_bytes(kept)
    change(tmp_path, resigned=False, statistics={})
    with pytest.raises(ValueError, match=r"action_tokenizer\.json is damaged or was changed"):
        load_action_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"action_tokenizer\.json is missing: .*tokenizer job writes"):
        load_action_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1}', "\x00"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / ACTION_TOKENIZER_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"action_tokenizer\.json (cannot be read|is not an action tokenizer's)"):
        load_action_tokenizer(tmp_path)


def test_another_version_or_kind_is_refused(tmp_path: Path) -> None:
    KINDS["binning"](training_chunks(), units()).save(tmp_path)
    change(tmp_path, resigned=True, kind="wavelets")
    with pytest.raises(ValueError, match=r"kind='wavelets': must be one of .*'beast', 'binning', 'fast'"):
        load_action_tokenizer(tmp_path)
    change(tmp_path, resigned=True, version=2)
    with pytest.raises(ValueError, match="has version 2; this code reads version 1"):
        load_action_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["beast", "binning", "omnisat"])
def test_settings_of_another_version_are_told(kind: str, tmp_path: Path) -> None:
    """FAST's are in its public files, which their digests guard."""
    KINDS[kind](training_chunks(), units()).save(tmp_path)
    change(tmp_path, resigned=True, config={})
    with pytest.raises(ValueError, match=r"action_tokenizer\.json is another version's or not whole: "):
        load_action_tokenizer(tmp_path)


def test_statistics_of_another_robot_are_refused(tokenizer: ActionTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    statistics = json.loads((tmp_path / ACTION_TOKENIZER_FILE).read_text())["statistics"]
    swapped = statistics | {"sawyer": statistics["panda"]}
    change(tmp_path, resigned=True, statistics=swapped)
    with pytest.raises(ValueError, match=r"'sawyer' has 4 action dims .* statistics have 7: they are another robot's"):
        load_action_tokenizer(tmp_path)
    change(tmp_path, resigned=True, statistics=statistics | {"ghost": statistics["panda"]})
    with pytest.raises(ValueError, match=r"statistics of robot 'ghost', but no embodiment"):
        load_action_tokenizer(tmp_path)
    action = statistics["sawyer"]["action"] | {"q99": [1.0, float("nan"), 1.0, 1.0]}
    broken = statistics | {"sawyer": statistics["sawyer"] | {"action": action}}
    change(tmp_path, resigned=True, statistics=broken)
    with pytest.raises(ValueError, match=r"statistics of robot 'sawyer': action q99=.*nan.* must be finite"):
        load_action_tokenizer(tmp_path)


def test_a_robot_that_no_chunk_was_seen_of_has_no_units() -> None:
    sawyer = statistics_of(training_chunks()["sawyer"])
    with pytest.raises(ValueError, match="statistics have 0"):
        Units(ROBOTS, {"sawyer": dataclasses.replace(sawyer, action=sawyer.state)})
