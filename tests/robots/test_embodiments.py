"""Embodiments on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale_vla.robots.embodiments import Embodiment, load_embodiments, save_embodiments

SAWYER = Embodiment(name="sawyer", state=("x", "y"), action=("dx",), cameras=("front", "wrist"), fps=20)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    other = Embodiment(name="panda", state=("j",), action=("dj", "grip"), cameras=("front",), fps=10)
    save_embodiments(tmp_path, [SAWYER, other])
    assert load_embodiments(tmp_path) == {"sawyer": SAWYER, "panda": other}
    assert [path.name for path in tmp_path.iterdir()] == ["embodiments.json"]


def test_a_missing_file_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"embodiments\.json is missing.*record_demo"):
        load_embodiments(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"a": {"name": "a"}}', '{"a": {"nme": 1}}', "[]", '{"a": 3}'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "embodiments.json").write_text(text)
    with pytest.raises(ValueError, match=r"embodiments\.json cannot be read"):
        load_embodiments(tmp_path)


def test_two_dims_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'twin': action=.*only once"):
        Embodiment(name="twin", state=("x",), action=("dx", "dx"), cameras=("front",), fps=20)


def test_scales_are_kept_and_older_files_have_none(tmp_path: Path) -> None:
    scaled = replace(SAWYER, action_scale=(0.04,), cameras=())
    save_embodiments(tmp_path, [scaled])
    assert load_embodiments(tmp_path) == {"sawyer": scaled}
    older = {"name": "sawyer", "state": ["x", "y"], "action": ["dx"], "cameras": ["front", "wrist"], "fps": 20}
    (tmp_path / "embodiments.json").write_text(json.dumps({"sawyer": older}))
    assert load_embodiments(tmp_path) == {"sawyer": SAWYER}


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (
            (0.04, 0.04),
            r"'sawyer': action_scale=\[0.04, 0.04\] must hold a number for each of the 1 action dims \['dx'\]",
        ),
        ((float("nan"),), r"'sawyer': action_scale=\[nan\] must be finite and not negative"),
        ((-0.04,), r"'sawyer': action_scale=\[-0.04\] must be finite and not negative"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scale: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SAWYER, action_scale=scale)
